"""chat.py where people sign in: by a device code, with a token, and what it says without either."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.keys import line, new_key
from local.people import Person
from local.places import ROOT
from tests.support.chat_client import until
from tests.support.issuer import ADA, BOB, LocalIssuer
from tests.support.processes import Host, HostFactory
from tests.support.terminal import CTRL_D, Result, open_terminal, run_piped, start_chat, wait_for_result

KEY = new_key()
ANSWER = "echo: hi\n"
CODE = re.compile(r"open (\S+) and enter the code (\w+)")


@pytest.fixture(scope="module")
def host_factory() -> Iterator[HostFactory]:
    with HostFactory() as factory:
        yield factory


@pytest.fixture(scope="module")
def issuer() -> Iterator[LocalIssuer]:
    with LocalIssuer() as started:
        yield started


@pytest.fixture
def host(host_factory: HostFactory, issuer: LocalIssuer, environ: dict[str, str], tmp_path: Path) -> Host:
    return host_factory.host(environ | issuer.environ | {"CLIENT_KEYS": line("ann", KEY)}, tmp_path / "log")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Of a user with a keystore."""
    return {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "tests/support/keystore"), "CHAT_KEY": ""}


async def log_in(host: Host, issuer: LocalIssuer, home: dict[str, str], person: Person | None = ADA) -> Result:
    """`chat.py login`, while the person enters its code in a browser."""
    process = await start_chat(host.base, "login", **home)
    assert process.stderr
    shown = CODE.search((await process.stderr.readline()).decode())
    assert shown
    await asyncio.to_thread(issuer.sign_in_device, shown[2], person)
    return await wait_for_result(process)


@pytest.mark.acceptance
async def test_login_is_stored_renewed_and_forgotten_at_logout(
    host_factory: HostFactory, environ: dict[str, str], home: dict[str, str], tmp_path: Path
) -> None:
    with LocalIssuer(token_s=200) as issuer:  # a token that is renewed before every request
        host = host_factory.host(environ | issuer.environ, tmp_path / "log")
        done = await log_in(host, issuer, home)
        assert (done.code, done.out) == (0, "")
        assert f"Signed in to {host.base} as Ada Lovelace." in done.err
        tokens = {(tmp_path / "keystore").read_text()}
        for _ in range(2):
            done = await run_piped(host.base, "hi\n", **home)
            assert (done.code, done.out) == (0, ANSWER), done.err
            tokens.add((tmp_path / "keystore").read_text())
        assert len(tokens) == 3
        done = await run_piped(host.base, "hi\n", "--url", f"{host.base}/", **home)
        assert done.out == ANSWER
        issuer.stop()
        issuer.start()
        done = await run_piped(host.base, "hi\n", **home)
        assert (done.code, done.err) == (1, "Your sign-in has expired. Sign in with `chat.py login`.\n")
        assert (await run_piped(host.base, "", "logout", **home)).err == f"Signed out of {host.base}.\n"
        assert json.loads((tmp_path / "keystore").read_text()) == {}
        done = await run_piped(host.base, "hi\n", **home)
        assert (done.code, done.out) == (1, "")
        assert "requires a sign-in (401)" in done.err


async def test_login_without_a_keystore_lasts_until_the_end(host: Host, issuer: LocalIssuer, tmp_path: Path) -> None:
    async with open_terminal(host.base, "login", "--session", "of-ada", HOME=str(tmp_path), CHAT_KEY="") as terminal:

        async def code() -> str | None:
            shown = CODE.search(terminal.text.replace("\n", " "))
            return shown[2] if shown else None

        await asyncio.to_thread(issuer.sign_in_device, await until(code), ADA)
        await terminal.shows("as Ada Lovelace.", "can't be stored", "You are signed in until you quit.")
        await terminal.enter("hi")
        await terminal.shows("echo: hi")
        await terminal.wait_for_prompt()
        terminal.type(CTRL_D)
        assert await terminal.wait_for_exit() == 0
    assert ".chat-api-sign-ins" not in os.listdir(tmp_path)  # noqa: PTH208 - a path's method blocks as well
    token = await asyncio.to_thread(issuer.access_token, BOB)
    done = await run_piped(host.base, "hi\n", "--session", "of-ada", CHAT_KEY="", CHAT_TOKEN=token)
    assert (done.code, done.out) == (1, "")
    assert "of-ada" in done.err
    done = await run_piped(host.base, "hi\n", "login", HOME=str(tmp_path))
    assert done.code == 1
    assert done.err.endswith(" Set CHAT_TOKEN instead.\n")


async def test_keystore_that_can_not_be_read_keeps_its_sign_ins(
    host: Host, issuer: LocalIssuer, home: dict[str, str], tmp_path: Path
) -> None:
    stored = json.dumps({"https://another.example.com": {"name": "Ada Lovelace"}})
    (tmp_path / "keystore").write_text(stored)
    (tmp_path / "locked").touch()
    done = await log_in(host, issuer, home)
    assert (done.code, "an unlocked keyring" in done.err) == (1, True)
    done = await run_piped(host.base, "", "logout", **home)
    assert (done.code, "the keystore is locked" in done.err) == (1, True)
    assert (tmp_path / "keystore").read_text() == stored
    (tmp_path / "locked").unlink()
    assert (await log_in(host, issuer, home)).code == 0
    assert json.loads((tmp_path / "keystore").read_text()).keys() == {"https://another.example.com", host.base}


async def test_declined_sign_in_is_an_error(host: Host, issuer: LocalIssuer, home: dict[str, str]) -> None:
    done = await log_in(host, issuer, home, person=None)
    assert (done.code, done.err) == (1, "The sign-in was declined.\n")


async def test_token_or_client_key_is_enough(host: Host, issuer: LocalIssuer) -> None:
    token = await asyncio.to_thread(issuer.access_token, ADA)
    for credential in ({"CHAT_TOKEN": token}, {"CHAT_CLIENT_KEY": KEY}):
        done = await run_piped(host.base, "hi\n", **credential)
        assert (done.code, done.out) == (0, ANSWER), done.err
    wrong = f"{token[:-8]}AAAAAAAA"
    for arguments, error in (
        ((), "A function key is not enough. Sign in with `chat.py login`, or set CHAT_TOKEN."),
        (("--key", ""), "(401). Sign in with `chat.py login`, or set CHAT_TOKEN."),
        (("--token", wrong), "has no valid signature. Sign in with `chat.py login`, or set another CHAT_TOKEN."),
    ):
        done = await run_piped(host.base, "hi\n", *arguments)
        assert (done.code, done.out) == (1, "")
        assert f"{host.base} requires a sign-in (401). " in done.err
        assert done.err.endswith(f"{error}\n")
        assert wrong not in done.err


async def test_where_only_client_keys_are_accepted_the_terminal_names_them(
    host_factory: HostFactory, issuer: LocalIssuer, environ: dict[str, str], home: dict[str, str], tmp_path: Path
) -> None:
    only_keys = {"CLIENT_KEYS": line("ann", KEY), "AUTH_ACCEPT": "keys"}
    host = host_factory.host(environ | issuer.environ | only_keys, tmp_path / "log")
    done = await run_piped(host.base, "hi\n")
    assert (done.code, done.err.partition(" Set it")[0]) == (1, f"{host.base} requires a client key (401).")
    done = await run_piped(host.base, "", "login", **home)
    assert (done.code, done.err) == (1, f"People do not sign in at {host.base}; it takes keys: --client-key.\n")


async def test_login_where_people_do_not_sign_in_names_the_key(
    host_factory: HostFactory, environ: dict[str, str], home: dict[str, str], tmp_path: Path
) -> None:
    host = host_factory.host(environ, tmp_path / "log")
    done = await run_piped(host.base, "", "login", **home)
    assert (done.code, done.err) == (1, f"People do not sign in at {host.base}; it takes keys: --key.\n")
