"""Tools for a developer's machine. Nothing here is deployed or imports `shared`: as on the platform, the two are
connected by HTTP and environment variables only.

Run it: `python3 -m local run`. The modules:
    __main__      the commands; restarts itself in the virtual environment
    places        paths in a checkout
    console       output; a progress line for each slow step
    packages      setup of the virtual environment, Python packages and Azurite; repairs an interrupted setup
    checks        the checks that `test` runs
    locks         updates the locked requirements
    lock          a file lock: one run at a time in a checkout
    keys          random keys and their hashes
    environment   the settings: embedded defaults < local.settings.json < environment variables
    parts         which processes the settings require
    child         one child process: start, watch, stop
    claim         what a run has for itself, checked before the setup: the state directory and a port
    run           the supervisor of all child processes
    azurite       Azure Table Storage's emulator
    model         a small language model that speaks OpenAI's wire format
    e5            a small embedding model
    embedding_model   its server, which speaks OpenAI's wire format
    triggers      the triggers that the function app declares
    routing       HTTP triggers, routed as the platform does
    timers        timer triggers, fired on schedule or by an admin request
    host          the local Functions host, built from these three
"""
