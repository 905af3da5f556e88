"""The web pages: a fixed list of files, each read once. Their content security policy allows no other sources."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.services import people_settings

_FOLDER = Path(__file__).with_name("pages")
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = frozenset(  # what pages/{file} serves
    path.name for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES and path.suffix != ".html"
)
# https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Content-Security-Policy. Trusted types are required and
# none is allowed, so that no script can turn a model's text into HTML, not even by mistake. Where people sign in, the
# pages exchange and renew tokens at the authority.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {sources}; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def home(request: Request) -> Response:
    return Response(status_code=302, headers={"location": "/chat"})


def page(request: Request, name: str) -> Response:
    return _answer(request, f"{name}.html")


def file(request: Request) -> Response:
    name = request.path_params["file"]
    return _answer(request, name) if name in FILES else Response(status_code=404)


def _answer(request: Request, name: str) -> Response:
    """The file, or 304 if the browser has this version. Browsers check every time, so a deployment shows at once."""
    asset, people = _read(name), people_settings()
    sources = f"'self' {people.authority}" if people and "people" in people.accepted else "'self'"
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": _POLICY.format(sources=sources),
        "etag": asset.etag,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    if asset.etag in request.headers.get("if-none-match", ""):  # "in", because compressing proxies change it to W/"…"
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


@cache
def _read(name: str) -> _File:
    path = _FOLDER / name
    content = path.read_bytes()
    return _File(content, _MEDIA_TYPES[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')
