"""The commands: `python3 -m local <command>`, which the Makefile's targets call.

Only the standard library, and no syntax newer than Python 3.7, so that an old Python prints a message, not a traceback.
"""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys

MIN_PYTHON = (3, 11)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python3 -m local", description="Runs and checks the chat API on this machine.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser(
        "run",
        help="install what is missing and start everything on 127.0.0.1; Ctrl-C stops it",
        description="Environment variables override local.settings.json, which overrides embedded defaults. "
        "If AZURE_OPENAI_ENDPOINT is set, no embedded model is started; if AZURE_OPENAI_EMBEDDING_ENDPOINT is set, no "
        "embedding model; if TABLES_ENDPOINT or TABLES_CONNECTION_STRING is set, no Azurite. With AUTH=1 people sign "
        "in, at a local issuer unless AUTH_TENANT_ID is set. PORT sets the port (default: 7071).",
    )
    run.add_argument("--state", metavar="DIR", help="the directory of data, keys and logs (default: .local)")
    run.add_argument("--settings", metavar="FILE", help="the settings file (default: local.settings.json)")
    test = commands.add_parser("test", help="install what is missing and run every check")
    test.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="arguments for pytest")
    acceptance = commands.add_parser("acceptance", help="install what is missing and run the long tests")
    acceptance.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="arguments for pytest")
    chat = commands.add_parser("chat", help="install what is missing and start the terminal client (chat.py)")
    chat.add_argument("chat", nargs="*", metavar="-- ARGUMENT", help="arguments for chat.py, such as --help")
    commands.add_parser("setup", help="install what run and test need")
    coverage = commands.add_parser("coverage", help="run the tests with branch coverage; fails below the minimum")
    coverage.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="arguments for pytest")
    lock = commands.add_parser("lock", help="update the locked requirements (*.txt) from the *.in files")
    lock.add_argument("uv", nargs="*", metavar="-- ARGUMENT", help="arguments for uv pip compile, such as --upgrade")
    clean = commands.add_parser("clean", help="remove the local data, the logs, the keys and Azurite")
    clean.add_argument("--all", action="store_true", help="remove the virtual environment (.venv) too")
    key = commands.add_parser("key", help="generate a random key and its entry for CLIENT_KEYS or USAGE_KEYS")
    key.add_argument("name", help="the caller's name: letters, digits, '.', '_' and '-'")
    return top


def in_venv() -> int:
    """Run the same command with the virtual environment's Python, which has the packages."""
    from local.places import ROOT, venv_python

    command = [str(venv_python()), "-m", "local", *sys.argv[1:]]
    os.chdir(str(ROOT))
    if os.name != "nt":
        os.execv(command[0], command)  # noqa: S606 - our own interpreter, without a shell
    return subprocess.call(command)  # noqa: S603


def set_up_and_run(command: str, arguments: argparse.Namespace) -> int:
    from local import packages
    from local.places import inside_venv

    if command == "run":
        from local import claim

        claim.check(arguments.state, arguments.settings)
    packages.prepare(checks=command not in ("run", "chat"))
    if command == "setup":
        return 0
    if not inside_venv():
        return in_venv()
    if command == "chat":
        return chat(arguments)
    if command == "lock":
        from local import locks

        return locks.lock(arguments.uv)
    if command in ("test", "acceptance", "coverage"):
        from local import checks

        return {"test": checks.run, "acceptance": checks.accept, "coverage": checks.cover}[command](arguments.pytest)
    from local import run

    return run.main(arguments.state, arguments.settings)


def chat(arguments: argparse.Namespace) -> int:
    from local.lock import Locked, hold
    from local.places import ROOT, STATE

    try:
        with hold(STATE / "run.lock"):
            port = None
    except Locked as locked:  # the server is running and has written its port
        port = locked.holder.get("port")
    if port or os.environ.get("PORT"):
        os.environ.setdefault("CHAT_URL", "http://127.0.0.1:{}".format(os.environ.get("PORT") or port))
    sys.argv = ["chat.py", *arguments.chat]
    runpy.run_path(str(ROOT / "chat.py"), run_name="__main__")
    return 0


def clean(everything: bool) -> int:
    from local.lock import Locked, hold
    from local.places import STATE, VENV

    try:
        with hold(STATE / "run.lock"):
            pass
    except Locked as locked:
        sys.exit(f"The chat API is running here (process {locked.holder.get('pid', '?')}). Stop it first.")
    for place in [STATE] + ([VENV] if everything else []):
        shutil.rmtree(str(place), ignore_errors=True)
    return 0


def key(name: str) -> int:
    from local import keys

    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        sys.exit(f"{name!r} is not a valid name: use letters, digits, '.', '_' and '-'.")
    secret = keys.new_key()
    print("Key, for the caller only (it is not stored):\n  " + secret)
    print("Entry for CLIENT_KEYS or USAGE_KEYS (separate several by commas):\n  " + keys.line(name, secret))
    return 0


def main() -> int:
    if sys.version_info < MIN_PYTHON:
        sys.exit("Python 3.11 or newer is required; this is {}.{}.".format(*sys.version_info[:2]))
    arguments = parser().parse_args()
    if arguments.command == "key":
        return key(arguments.name)
    if arguments.command == "clean":
        return clean(arguments.all)
    return set_up_and_run(arguments.command, arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
