"""The local issuer (local/issuer.py) as a process, and a client that signs in at it as a page does."""

import base64
import hashlib
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx

from local.parts import free_port, healthy
from local.people import CLIENT_ID, PEOPLE, TENANT_ID, Person
from local.places import ROOT
from tests.support.loopback import MAX_WAIT_S

ADA, BOB, CAROL = PEOPLE  # Carol is an administrator
PAGE = "http://127.0.0.1:7071/chat"
ORIGIN = {"origin": "http://127.0.0.1:7071"}
SCOPE = f"openid profile offline_access {CLIENT_ID}/access_as_user"
VERIFIER = "a-code-verifier-of-the-tests-that-is-long-enough"
JSON = dict[str, Any]


class LocalIssuer:
    """A running issuer, until the block ends. Started again, it knows no earlier key, code or token."""

    def __init__(self, token_s: int = 3_600) -> None:
        self.port, self._token_s = free_port(), token_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--token-seconds", str(self._token_s)]
        command = [sys.executable, "-m", "local.issuer", *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + MAX_WAIT_S
        while not healthy(f"{self.authority}/health"):
            assert self._process.poll() is None, "the issuer has exited"
            assert time.monotonic() < deadline, "the issuer does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def authority(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The app's settings for this issuer."""
        return {"AUTH_TENANT_ID": TENANT_ID, "AUTH_CLIENT_ID": CLIENT_ID, "AUTH_AUTHORITY": self.authority}

    def client(self) -> httpx.Client:
        """Of its OAuth endpoints."""
        base = f"{self.authority}/{TENANT_ID}/oauth2/v2.0/"
        return httpx.Client(base_url=base, trust_env=False, timeout=MAX_WAIT_S)

    def tokens(self, person: Person) -> JSON:
        """Those of a page at which the person has signed in."""
        with self.client() as client:
            code = code_for(client, person)
            return dict(client.post("token", data=code_grant(code), headers=ORIGIN).raise_for_status().json())

    def access_token(self, person: Person) -> str:
        return str(self.tokens(person)["access_token"])

    def sign_in_device(self, user_code: str, person: Person | None) -> None:
        """Enter the code at the page for devices; None declines."""
        form = {"user_code": user_code, "person": person.object_id if person else ""}
        with self.client() as client:
            client.post("deviceauth", data=form).raise_for_status()


def authorization(**changes: str) -> dict[str, str]:
    """An authorization request of a page."""
    digest = hashlib.sha256(VERIFIER.encode()).digest()
    return {
        "client_id": CLIENT_ID,
        "response_type": "code",
        "redirect_uri": PAGE,
        "scope": SCOPE,
        "state": "s",
        "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    } | changes


def code_for(client: httpx.Client, person: Person, **changes: str) -> str:
    response = client.post("authorize", data=authorization(**changes) | {"person": person.object_id})
    assert response.status_code == 303, response.text
    return parse_qs(urlsplit(response.headers["location"]).query)["code"][0]


def code_grant(code: str, **changes: str) -> dict[str, str]:
    grant = {"client_id": CLIENT_ID, "grant_type": "authorization_code", "code": code, "redirect_uri": PAGE}
    return grant | {"scope": SCOPE, "code_verifier": VERIFIER} | changes
