"""Parsers of single settings: text in, a checked value out.

A parser gets text that is stripped and not empty. It raises ValueError if the text is malformed. The message is a
sentence for the operator, never the text of a Python exception. It does not name the setting (`shared.environment` adds
the name) and never repeats a secret.
"""

import json
import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import fields
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, cast, get_args
from urllib.parse import SplitResult, urlsplit

from shared.domain.calls import Rates, ReasoningEffort
from shared.domain.limits import Limit, Limits
from shared.domain.pricing import DEFAULT_TIER, DEFAULT_TIERS, Tariff

_LIMIT_PARTS = tuple(part.name for part in fields(Limit) if part.name != "name")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a deployment or of a key

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_LIMITS_EXAMPLE = '{"total": {"usd_per_day": 10}}'
# https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin; of a web page, an extension or an app's web view
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_DEFAULT_PORTS = {"https": ":443", "http": ":80"}

_PRICES_EXAMPLE = '{"gpt-5.4-mini": {"input": 0.75, "output": 4.5}}'

ACCEPTED = frozenset({"people", "keys"})  # callers that AUTH_ACCEPT can name
GUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class SettingsError(Exception):
    """The setting `name` is missing or malformed. The message begins with the name and says what is expected."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name} {message}")
        self.name = name


class UnresolvedReference(SettingsError):
    """The setting is a Key Vault reference that the platform has not resolved."""


def parse_whole_number(value: str, *, minimum: int, maximum: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not minimum <= int(value) <= maximum:
        raise ValueError(f"{value!r} is not a whole number from {minimum} to {maximum}.")
    return int(value)


def parse_seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", value) or float(value) <= 0:
        raise ValueError(f"{value!r} is not a positive number of seconds.")
    return float(value)


def parse_model_endpoints(value: str) -> tuple[str, ...]:
    """Comma-separated URLs to base URLs that end in /v1/, in the same order."""
    urls = [url.strip() for url in value.split(",") if url.strip()]
    if not urls:
        raise ValueError("it contains no URL.")
    return tuple(map(_model_endpoint, urls))


def _model_endpoint(url: str) -> str:
    parts = _url(url, ("https", "http"), "https://NAME.openai.azure.com")
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r} has a query or a fragment. Remove it.")
    path = parts.path.rstrip("/")
    if path.endswith("/v1"):
        return f"{parts.scheme}://{parts.netloc}{path}/"
    if path:
        raise ValueError(f"{url!r} has a path that does not end in /v1.")
    return f"{parts.scheme}://{parts.netloc}/openai/v1/"


def _url(text: str, schemes: Sequence[str], example: str) -> SplitResult:
    parts = _split(text)
    valid = parts is not None and parts.scheme in schemes and _HOST.fullmatch(parts.hostname or "")
    if "@" in (parts.netloc if parts and valid else text):  # the message must not repeat the password
        raise ValueError("a URL in it contains a name or password. Keys have settings of their own.")
    if not parts or not valid:
        raise ValueError(f"{text!r} is not a URL such as {example}.")
    return parts


def _split(url: str) -> SplitResult | None:
    """None if the host or the port can't be connected to, or for a line break, which urlsplit leaves out."""
    if not url.isprintable():
        return None
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        port = parts.port
    except ValueError:
        return None
    return None if port == 0 else parts


def is_remote_cleartext(url: str) -> bool:
    """True if requests to this URL leave the machine without TLS."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS


def parse_api_key(value: str) -> str:
    if not value.isascii() or not value.isprintable():  # it is sent as an HTTP header
        raise ValueError("it contains characters other than printable ASCII.")
    return value


def parse_guid(value: str) -> str:
    if not re.fullmatch(GUID, value.lower()):
        raise ValueError(f"{value!r} is not an id such as 11111111-2222-3333-4444-555555555555.")
    return value.lower()


def parse_authority(value: str) -> str:
    """The issuer's origin. http only on this machine: keys that an attacker could replace would open the app."""
    parts = _url(value, ("https", "http"), "https://login.microsoftonline.com")
    if parts.query or parts.fragment or parts.path.strip("/") or is_remote_cleartext(value):
        raise ValueError(f"{value!r} is not a URL such as https://login.microsoftonline.com, without a path.")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def parse_names(value: str) -> frozenset[str]:
    names = frozenset(filter(None, map(str.strip, value.split(","))))
    for name in sorted(names):
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name such as Chat.User.")
    return names


def parse_accepted(value: str) -> frozenset[str]:
    accepted = parse_names(value)
    if not accepted or not accepted <= ACCEPTED:
        raise ValueError(f"{value!r} is not people, keys, or people,keys.")
    return accepted


def parse_origins(value: str) -> frozenset[str]:
    """Comma-separated origins, as browsers send them; `*` alone stands for all."""
    origins = frozenset(filter(None, map(str.strip, value.split(","))))
    if "*" in origins and len(origins) > 1:
        raise ValueError("* is in a list. It allows every origin and must be the whole setting.")
    for origin in sorted(origins - {"*"}):
        scheme, _, rest = origin.partition("://")
        if not _ORIGIN.fullmatch(origin) or rest.endswith(_DEFAULT_PORTS.get(scheme, " ")):
            raise ValueError(
                f"{origin!r} is not an origin such as https://app.example.com: scheme, host and port as a browser sends"
                " them, in lower case, without a path and without a default port."
            )
    return origins


def parse_reasoning_effort(value: str) -> ReasoningEffort:
    if value not in get_args(ReasoningEffort):
        raise ValueError(f"{value!r} is not one of {', '.join(get_args(ReasoningEffort))}.")
    return cast(ReasoningEffort, value)


def parse_deployments(value: str) -> dict[str, str]:
    """`deployment=model[@version], …` to deployment -> model[@version]; "" for a deployment without a model."""
    deployments = {}
    for item in filter(None, map(str.strip, value.split(","))):
        name, _, model = map(str.strip, item.partition("="))
        if not NAME.fullmatch(name):
            raise ValueError(f"{item!r} is not deployment=model or deployment=model@version.")
        deployments[name] = model
    return deployments


def parse_max_output_tokens(value: str) -> dict[str, int]:
    """`number` or `deployment=number, …` to deployment -> tokens; "" stands for every deployment that is not named."""
    maxima = {}
    for item in filter(None, map(str.strip, value.split(","))):
        name, named, number = item.rpartition("=")
        name = name.strip()
        if (named and not NAME.fullmatch(name)) or not re.fullmatch(r"[0-9]{1,9}", number.strip()) or int(number) < 1:
            raise ValueError(f"{item!r} is not a number of tokens, or deployment=number.")
        if name in maxima:
            raise ValueError(f"{name or 'a number without a deployment'} is listed twice.")
        maxima[name] = int(number)
    return maxima


def _json_object(value: str, example: str) -> dict[str, Any]:
    """The parsed object, with its numbers as text. Names are unique."""
    try:
        parsed = json.loads(value, parse_float=str, parse_int=str, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"it is not JSON from {where} on. Expected: {example}.") from None
    except RecursionError:
        raise ValueError(f"it is not JSON like this: {example}. It is nested too deeply.") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"it must be a JSON object such as {example}.")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"it has {min(twice)!r} twice.")
    return dict(pairs)


def parse_prices(value: str) -> dict[str, Tariff]:
    """A JSON object of deployment or model -> USD per 1,000,000 tokens by kind, and by service tier and kind. Amounts
    are exact, never floats."""
    prices = _json_object(value, _PRICES_EXAMPLE)
    return {name: _tariff(name, amounts) for name, amounts in prices.items()}


def _tariff(name: str, amounts: object) -> Tariff:
    """The rates of the default tier, and of those that are named inside it."""
    if not isinstance(amounts, dict):
        raise ValueError(f"{name!r} needs input and output, in USD per 1M tokens.")
    default = {kind: each for kind, each in amounts.items() if not isinstance(each, dict)}
    tiers = {tier: _rates(f"{name}.{tier}", each) for tier, each in amounts.items() if tier not in default}
    if unneeded := {tier for tier in tiers if tier.lower() in DEFAULT_TIERS}:
        raise ValueError(f"{name!r} has its default prices beside its tiers, without {min(unneeded)!r}.")
    return {DEFAULT_TIER: _rates(name, default), **{tier.lower(): rates for tier, rates in tiers.items()}}


def parse_limits(value: str) -> Limits:
    """A JSON object of total, anonymous, callers' names, `*` and session -> limits."""
    limits = _json_object(value, _LIMITS_EXAMPLE)
    session = _limit("session", limits.pop("session", {}), ("usd", "max_tokens"))
    return Limits(
        by_name={name: Limit(name=name, **_limit(name, parts, _LIMIT_PARTS)) for name, parts in limits.items()},
        session_usd=session.get("usd"),
        session_max_tokens=session.get("max_tokens"),
    )


def _limit(name: str, parts: object, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(parts, dict):
        raise ValueError(f"{name!r} must be a JSON object of limits ({', '.join(names)}).")
    if unknown := parts.keys() - set(names):
        raise ValueError(f"{name!r} has the unknown limit {min(unknown)!r}. Known are {', '.join(names)}.")
    return {part: _limit_value(name, part, each) for part, each in parts.items()}


def _limit_value(name: str, part: str, value: object) -> Decimal | int | str:
    if part == "fallback_deployment":
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise ValueError(f"{part} of {name!r} is not the name of a deployment.")
        return value
    return (_rate if part.startswith("usd") else _count)(name, part, value)


def _count(name: str, kind: str, value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch("[0-9]{1,9}", value) or int(value) < 1:
        raise ValueError(f"{kind} of {name!r} is not a whole number from 1 to 999,999,999.")
    return int(value)


def _rates(name: str, amounts: object) -> Rates:
    if not isinstance(amounts, dict) or "input" not in amounts:
        raise ValueError(f"{name!r} needs input and output, in USD per 1M tokens.")
    if unknown := amounts.keys() - {kind.name for kind in fields(Rates)}:
        raise ValueError(f"{name!r} has the unknown price {min(unknown)!r}.")
    rates = {kind: _rate(name, kind, amount) for kind, amount in amounts.items()}
    return Rates(
        input=rates["input"],
        cached_input=rates.get("cached_input", rates["input"]),
        cache_write=rates.get("cache_write", rates["input"]),
        output=rates.get("output"),
        audio_input=rates.get("audio_input"),
        audio_output=rates.get("audio_output"),
    )


def _rate(name: str, kind: str, amount: object) -> Decimal:
    rate = _number(amount)
    if rate is None:
        raise ValueError(f"{kind} of {name!r} is not a number such as 0.75: {json.dumps(amount)[:100]}.")
    # At most 6 digits before the decimal point and 12 after it: costs and totals stay exact in Decimal's 28 digits.
    if not rate.is_finite() or not 0 <= rate < 1_000_000 or rate != round(rate, 12):
        raise ValueError(
            f"{kind} of {name!r} is not an amount in USD from 0 to below 1,000,000 with at most 12 decimals."
        )
    return rate


def _number(amount: object) -> Decimal | None:
    """The number of a JSON string or number, which the JSON parser passes as text; None if it is none."""
    if not isinstance(amount, str) or not amount.isascii() or "_" in amount:  # Decimal accepts 1_5
        return None
    try:
        return Decimal(amount)
    except InvalidOperation:
        return None


def parse_tables_endpoint(value: str) -> str:
    _url(value, ("https",), "https://NAME.table.core.windows.net")  # an access token is sent there: TLS only
    return value


def parse_storage_connection_string(value: str) -> str:
    """Returns the value itself. It contains a key or a signature, so messages repeat no part of it."""
    parts = [part.partition("=") for part in value.split(";") if part.strip()]
    if not all(name.strip() and text.strip() for name, _, text in parts):
        raise ValueError("a part of it is not name=value.")
    values = {name.strip().lower(): text.strip() for name, _, text in parts}
    names = values.keys()
    if len(names) < len(parts):
        raise ValueError("a name in it is listed twice.")
    if value.lower() != "usedevelopmentstorage=true" and not (
        {"accountname", "accountkey"} <= names or {"tableendpoint", "sharedaccesssignature"} <= names
    ):
        raise ValueError("it needs AccountName and AccountKey, or TableEndpoint and SharedAccessSignature.")
    try:
        b64decode(values.get("accountkey", ""), validate=True)
    except ValueError:
        raise ValueError("its AccountKey is not base64; copy it again.") from None
    return value


def is_cosmos(address: str) -> bool:
    """True if the endpoint or connection string is of Azure Cosmos DB for Table."""
    address = address.lower().replace(" ", "")
    return any(name in address for name in (".table.cosmos.", ".table.cosmosdb.", "endpointsuffix=cosmos"))


def is_cosmos_emulator(address: str) -> bool:
    """True if azure-data-tables takes it for one: localhost, on another port than Azurite's."""
    return re.search(r"://localhost(?!:10002\b)(?![\w.-])", address, re.IGNORECASE) is not None


TablesClient = Literal["http", "sdk"]


def parse_tables_client(value: str) -> TablesClient:
    if value not in ("http", "sdk"):
        raise ValueError(f"{value!r} is not one of http, sdk.")
    return cast(TablesClient, value)


def parse_table_prefix(value: str) -> str:
    # https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#table-names
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,54}", value):
        raise ValueError(f"{value!r} must begin with a letter, followed by up to 54 letters or digits.")
    return value


def parse_key_hashes(value: str) -> dict[str, str]:
    """`name=SHA-256 of the key, …` to name -> hash, in lower-case hex. Names and hashes are unique."""
    hashes: dict[str, str] = {}
    for item in filter(None, map(str.strip, value.split(","))):
        name, _, key_hash = map(str.strip, item.partition("="))
        if not NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-fA-F]{64}", key_hash):
            raise ValueError("an entry is not name=SHA-256 of the key in hex; 'make key NAME=…' prints one.")
        if name in hashes or key_hash.lower() in hashes.values():
            raise ValueError(f"{name!r} or its key is listed twice.")
        hashes[name] = key_hash.lower()
    return hashes
