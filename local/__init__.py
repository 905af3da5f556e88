"""What runs only on a developer's machine. Nothing here is deployed, and nothing here imports `shared`: the seam
between the two is HTTP and the environment, as it is on the platform.

Run it: `python3 -m local run`. The rooms:
    __main__      the commands, and the step into the virtual environment
    places        where things lie
    console       one line for each thing that takes time
    packages      set-up: the virtual environment, Python's packages, Azurite, repaired when interrupted
    checks        what `test` runs
    lock          one run at a time in one checkout
    keys          random keys, and the hashes that the app is given
    environment   the settings: embedded < local.settings.json < the process's environment
    parts         what has to run for these settings
    child         one running part: started, watched, stopped
    run           the supervisor of all parts
    azurite       Azure Table Storage's emulator
    model         a small language model that speaks OpenAI's wire format
    triggers      what the function app declares
    routing       its HTTP triggers, routed as the platform does
    timers        its timer triggers, and a way to fire them by hand
    host          the local Functions host made of these three
"""
