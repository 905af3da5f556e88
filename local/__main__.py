"""The commands: `python3 -m local <run|test|acceptance|chat|setup|clean|key>`, which the Makefile's targets call.

Standard library alone, and no syntax newer than Python 3.7's, so that an old Python gets a sentence, not a traceback.
"""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys

OLDEST = (3, 11)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python3 -m local", description="Runs and checks the chat API on this machine.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser(
        "run",
        help="set up what is missing, start everything on 127.0.0.1, stop it all on Ctrl-C",
        description="Settings: the environment, then local.settings.json, then embedded defaults. With "
        "AZURE_OPENAI_ENDPOINT set no embedded model is started, with TABLES_* set no Azurite. PORT (7071) moves it.",
    )
    run.add_argument("--state", metavar="DIR", help="where data, keys and logs are kept (default: .local)")
    run.add_argument("--settings", metavar="FILE", help="the settings file (default: local.settings.json)")
    test = commands.add_parser("test", help="set up what is missing and run every check")
    test.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="arguments for pytest")
    acceptance = commands.add_parser("acceptance", help="set up what is missing and run the long tests")
    acceptance.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="arguments for pytest")
    chat = commands.add_parser("chat", help="set up what is missing, and chat with the service (chat.py)")
    chat.add_argument("chat", nargs="*", metavar="-- ARGUMENT", help="arguments for chat.py, such as --help")
    commands.add_parser("setup", help="set up what run and test need, and stop there")
    clean = commands.add_parser("clean", help="remove the local data, the logs, the keys and Azurite")
    clean.add_argument("--all", action="store_true", help="remove the virtual environment (.venv) too")
    key = commands.add_parser("key", help="make a random key, and its line for CLIENT_KEYS or USAGE_KEYS")
    key.add_argument("name", help="who the key is for: letters, digits, '.', '_' and '-'")
    return top


def in_venv() -> int:
    """The same command again, by the environment's own Python, which now has the packages."""
    from local.places import ROOT, venv_python

    command = [str(venv_python()), "-m", "local", *sys.argv[1:]]
    os.chdir(str(ROOT))
    if os.name != "nt":
        os.execv(command[0], command)  # noqa: S606 - our own interpreter, and no shell
    return subprocess.call(command)  # noqa: S603


def set_up_and(command: str, arguments: argparse.Namespace) -> int:
    from local import packages
    from local.places import inside_venv

    packages.prepare(checks=command not in ("run", "chat"))
    if command == "setup":
        return 0
    if not inside_venv():
        return in_venv()
    if command == "chat":
        return chat(arguments)
    if command in ("test", "acceptance"):
        from local import checks

        return (checks.run if command == "test" else checks.accept)(arguments.pytest)
    from local import run

    return run.main(arguments.state, arguments.settings)


def chat(arguments: argparse.Namespace) -> int:
    from local.lock import Taken, hold
    from local.places import ROOT, STATE

    try:
        with hold(STATE / "run.lock"):
            port = None
    except Taken as taken:  # the service runs here, and has said where
        port = taken.holder.get("port")
    if port or os.environ.get("PORT"):
        os.environ.setdefault("CHAT_URL", "http://127.0.0.1:{}".format(os.environ.get("PORT") or port))
    sys.argv = ["chat.py", *arguments.chat]
    runpy.run_path(str(ROOT / "chat.py"), run_name="__main__")
    return 0


def clean(everything: bool) -> int:
    from local.lock import Taken, hold
    from local.places import STATE, VENV

    try:
        with hold(STATE / "run.lock"):
            pass
    except Taken as taken:
        sys.exit(f"The chat API is running here (process {taken.holder.get('pid', '?')}): stop it first.")
    for place in [STATE] + ([VENV] if everything else []):
        shutil.rmtree(str(place), ignore_errors=True)
    return 0


def key(name: str) -> int:
    from local import keys

    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        sys.exit(f"A key's name is made of letters, digits, '.', '_' and '-': {name!r} is not.")
    secret = keys.new_key()
    print("The key, for the caller alone (it is kept nowhere):\n  " + secret)
    print("Its line for CLIENT_KEYS or USAGE_KEYS (commas between several):\n  " + keys.line(name, secret))
    return 0


def main() -> int:
    if sys.version_info < OLDEST:
        sys.exit("Python 3.11 or newer is needed; this is {}.{}.".format(*sys.version_info[:2]))
    arguments = parser().parse_args()
    if arguments.command == "key":
        return key(arguments.name)
    if arguments.command == "clean":
        return clean(arguments.all)
    return set_up_and(arguments.command, arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
