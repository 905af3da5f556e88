"""Parses URLs in the email settings. Error messages never contain the URL, because it may hold a password."""

from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from shared.settings import SettingsError


def split_url(name: str, url: str, example: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # otherwise connecting fails, with an error that names no setting
    except ValueError:
        raise SettingsError(name, f"is malformed. Expected: {example}.") from None
    return parts, port


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
