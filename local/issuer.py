"""A small issuer of people's access tokens in place of Microsoft Entra ID, on 127.0.0.1 only, for development.

It has Entra's paths, and tokens shaped like Entra's version 2. A visitor of its page chooses a person, without a
password; so it sends codes to pages of this machine only. Keys, codes and refresh tokens last as long as the process.
https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow
https://learn.microsoft.com/entra/identity-platform/v2-oauth2-device-code
https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
"""

import argparse
import html
import secrets
import time
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from local.people import CLIENT_ID, PEOPLE, TENANT_ID, Person
from local.tokens import TOKEN_S, Device, Grant, Issuer, Refused

CODE_S = 600
DEVICE_CODE_S = 900
POLL_S = 1  # Entra's is 5
LOOPBACK = ("127.0.0.1", "localhost")
ORIGINS = r"http://(127\.0\.0\.1|localhost)(:\d+)?"
USER_CODE_ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"


def _is_loopback(url: str) -> bool:
    """Whether codes may be sent there: a page of this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "http" and parts.hostname in LOOPBACK and not parts.fragment


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace")))


def application(authority: str, token_s: int = TOKEN_S) -> Starlette:
    """The issuer as an ASGI app. `authority`: its URL, without a slash at the end."""
    issuer = Issuer(authority, token_s)

    async def discovery(_: Request) -> Response:
        return JSONResponse(issuer.discovery())

    async def keys(_: Request) -> Response:
        return JSONResponse(issuer.keys())

    async def authorize(request: Request) -> Response:
        return _page("Sign in", "Who signs in?", _choices(_checked(request.query_params)))

    async def authorized(request: Request) -> Response:
        form = await _form(request)
        _checked(form)
        person = _chosen(form)
        if person is None:
            answer = {"error": "access_denied", "error_subcode": "cancel"}
        else:
            code = secrets.token_urlsafe(40)
            issuer.codes[code] = Grant(
                person,
                form.get("scope", ""),
                time.time() + CODE_S,
                is_spa=True,
                challenge=form["code_challenge"],
                redirect_uri=form["redirect_uri"],
                nonce=form.get("nonce", ""),
            )
            answer = {"code": code}
        separator = "?" if form.get("response_mode", "query") == "query" else "#"
        query = urlencode(answer | {"state": form.get("state", "")})
        return RedirectResponse(f"{form['redirect_uri']}{separator}{query}", status_code=303)

    async def token(request: Request) -> Response:
        grant = issuer.redeemed(await _form(request), has_origin="origin" in request.headers)
        return JSONResponse(issuer.tokens(grant), headers={"cache-control": "no-store"})

    async def device_code(request: Request) -> Response:
        form = await _form(request)
        if form.get("client_id") != CLIENT_ID:
            raise Refused("unauthorized_client", f"There is no client {form.get('client_id', '')!r} here.")
        code, user_code = secrets.token_urlsafe(40), "".join(secrets.choice(USER_CODE_ALPHABET) for _ in range(9))
        issuer.devices[code] = Device(user_code, form.get("scope", ""), time.time() + DEVICE_CODE_S)
        address = f"{issuer.base}/oauth2/v2.0/deviceauth"
        return JSONResponse(
            {
                "device_code": code,
                "user_code": user_code,
                "verification_uri": address,
                "expires_in": DEVICE_CODE_S,
                "interval": POLL_S,
                "message": f"To sign in, open {address} and enter the code {user_code}.",
            }
        )

    async def device_page(_: Request) -> Response:
        code = '<label>Code <input name="user_code" required autofocus autocomplete="off"></label>'
        return _page("Sign in a device", "Enter the code that the program shows, and choose who signs in.", [code])

    async def device_signed_in(request: Request) -> Response:
        form = await _form(request)
        user_code = form.get("user_code", "").strip().upper()
        waiting = (each for each in issuer.devices.values() if each.user_code == user_code and time.time() < each.until)
        if not (device := next(waiting, None)):
            raise HTTPException(400, "This code is unknown or expired.")
        device.person = _chosen(form)
        device.is_declined = device.person is None
        done = "The sign-in was declined." if device.person is None else f"Signed in as {device.person.name}."
        return _document("Sign in a device", f"<p>{html.escape(done)} You can close this page.</p>")

    async def log_out(request: Request) -> Response:
        target = request.query_params.get("post_logout_redirect_uri", "")
        return RedirectResponse(target) if _is_loopback(target) else _document("Signed out", "<p>Signed out.</p>")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    oauth = f"/{TENANT_ID}/oauth2/v2.0"
    return Starlette(
        routes=[
            Route(f"/{TENANT_ID}/v2.0/.well-known/openid-configuration", discovery),
            Route(f"/{TENANT_ID}/discovery/v2.0/keys", keys),
            Route(f"{oauth}/authorize", authorize),
            Route(f"{oauth}/authorize", authorized, methods=["POST"]),
            Route(f"{oauth}/token", token, methods=["POST"]),
            Route(f"{oauth}/devicecode", device_code, methods=["POST"]),
            Route(f"{oauth}/deviceauth", device_page),
            Route(f"{oauth}/deviceauth", device_signed_in, methods=["POST"]),
            Route(f"{oauth}/logout", log_out),
            Route("/health", health),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)),  # against DNS rebinding
            Middleware(CORSMiddleware, allow_origin_regex=ORIGINS, allow_methods=["GET", "POST"]),
        ],
        exception_handlers={Refused: _refused, HTTPException: _http_error},
    )


def _checked(request: Mapping[str, str]) -> Mapping[str, str]:
    """An authorization request. Raises HTTPException: a request with errors is not sent on to its redirect address."""
    redirect_uri = request.get("redirect_uri", "")
    rules = {
        f"There is no client {request.get('client_id', '')!r} here.": request.get("client_id") != CLIENT_ID,
        f"The redirect address {redirect_uri!r} is not one of this machine.": not _is_loopback(redirect_uri),
        "response_type must be code.": request.get("response_type") != "code",
        "code_challenge and code_challenge_method=S256 are required (PKCE).": not request.get("code_challenge")
        or request.get("code_challenge_method") != "S256",
        "response_mode must be query or fragment.": request.get("response_mode", "query") not in ("query", "fragment"),
    }
    if problems := [problem for problem, is_there in rules.items() if is_there]:
        raise HTTPException(400, " ".join(problems))
    return request


def _chosen(form: Mapping[str, str]) -> Person | None:
    """None if the sign-in is cancelled."""
    return next((person for person in PEOPLE if person.object_id == form.get("person")), None)


def _choices(request: Mapping[str, str]) -> list[str]:
    return [
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in request.items()
    ]


def _page(title: str, text: str, fields: Iterable[str]) -> Response:
    """A page with a button for each person, which sends the fields along."""
    buttons = [
        f'<button name="person" value="{person.object_id}">{html.escape(person.name)}'
        f"{' (administrator)' if 'Chat.Admin' in person.roles else ''}</button>"
        for person in PEOPLE
    ]
    cancel = '<button name="person" value="" formnovalidate>Cancel</button>'
    form = f'<form method="post">{"".join([*fields, *buttons, cancel])}</form>'
    return _document(title, f"<p>{html.escape(text)} No password: this is a stand-in for Microsoft Entra ID.</p>{form}")


_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:24rem;margin:15vh auto;padding:0 1rem;color-scheme:light dark}"
    "form{display:grid;gap:.5rem}button,input{font:inherit;padding:.5rem;width:100%;box-sizing:border-box}"
)


def _document(title: str, body: str, status: int = 200) -> Response:
    headers = {
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
    }
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{body}"
    )
    return HTMLResponse(text, status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - registered for it
    return JSONResponse({"error": error.error, "error_description": error.description}, status_code=400)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    return _document("Sign-in failed", f"<p>{html.escape(error.detail)}</p>", error.status_code)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.issuer", description="Issues access tokens for development.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token-seconds", type=int, default=TOKEN_S, help="how long a token is valid")
    arguments = parser.parse_args()
    app = application(f"http://127.0.0.1:{arguments.port}", arguments.token_seconds)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, lifespan="off", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
