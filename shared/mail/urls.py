"""URLs in the settings of email. No message repeats them: they may hold a password."""

from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from shared.settings import SettingsError


def split_url(name: str, url: str, example: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # connecting would fail on it with an error that names no setting
    except ValueError:
        raise SettingsError(name, f"is malformed: it should be {example}.") from None
    return parts, port


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
