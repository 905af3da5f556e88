"""The app's settings, parsed once. What they are read from is handed in.

Every setting is described in `local.settings.sample.json` and in the README. A missing or malformed one is a
SettingsError that names it. An empty one counts as absent.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TypeVar, get_args
from urllib.parse import urlsplit

from shared.contract import ReasoningEffort
from shared.conversation import Rates

T = TypeVar("T")

_MOST_BYTES = 500_000  # of a body: a system prompt of that size fills its row, at two bytes a character

# Of what RFC 5321 allows, that which a header holds as it is: ASCII, no quotes, and no `?` as in =?an encoded word?=.
_ATOM, _LABEL = r"[A-Za-z0-9!#$%&'*+/=^_`{|}~-]+", "[A-Za-z0-9_-]+"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a deployment, of a key
_ADDRESS = re.compile(rf"{_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*")

MOST_ANSWER_TOKENS = 100_000  # more might not fit into a table's row
SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly and say so when you do not know."


class SettingsError(Exception):
    """The setting `name` is missing or malformed; the message says what it should be."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name} {message}")
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, parsed. Sizes in bytes or tokens, times in seconds, prices in USD per 1,000,000 tokens."""

    endpoints: tuple[str, ...]  # base URLs that end in /v1/, in order of preference
    api_key: str | None
    scope: str  # of the model service's tokens
    deployment: str  # the default one
    deployments: Mapping[str, str]  # deployment -> model, or model@version; "" where only the name is known
    max_tokens: int
    max_retries: int
    reasoning_effort: str | None
    timeout: float
    turn_timeout: float
    context_tokens: int
    system_prompt: str
    max_output_tokens: int  # the largest answer of any model, for the worst case of one that names no maximum
    max_message_bytes: int
    max_request_bytes: int  # of openai/*
    prices: Mapping[str, Rates]
    tables_endpoint: str | None
    tables_connection_string: str | None
    table_prefix: str
    client_id: str | None
    in_azure: bool  # the platform's identity endpoint is there
    insights: str | None  # Application Insights' connection string
    region: str | None
    client_keys: Mapping[str, str]  # name -> SHA-256 of the key, in hex
    usage_keys: Mapping[str, str]
    recipients: tuple[str, ...]  # of the daily summary
    sender: str | None
    acs_endpoint: str | None
    acs_connection_string: str | None
    smtp_url: str | None
    outbox: str | None  # a folder

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        env = _Environment(environ)
        deployment = env.text("AZURE_OPENAI_MODEL", "gpt-5.4-mini")
        tables_endpoint = env.parsed_or_none("TABLES_ENDPOINT", _tables_endpoint)
        connection_string = env.parsed_or_none("TABLES_CONNECTION_STRING", _connection_string)
        if not tables_endpoint and not connection_string:
            raise SettingsError("TABLES_ENDPOINT", "(or TABLES_CONNECTION_STRING) is not set: where the tables are.")
        context_tokens = env.whole("CONTEXT_TOKENS", 16_000, least=256)
        settings = cls(
            endpoints=env.parsed("AZURE_OPENAI_ENDPOINT", _endpoints),
            api_key=env.parsed_or_none("AZURE_OPENAI_API_KEY", _api_key),
            scope=env.text("AZURE_OPENAI_SCOPE", "https://cognitiveservices.azure.com/.default"),
            deployment=deployment,
            deployments=_with_default(env.parsed("AZURE_OPENAI_DEPLOYMENTS", _deployments, {}), deployment),
            max_tokens=env.whole("AZURE_OPENAI_MAX_TOKENS", 800, least=1),
            max_retries=env.whole("AZURE_OPENAI_MAX_RETRIES", 2, least=0, most=10),
            reasoning_effort=env.parsed_or_none("AZURE_OPENAI_REASONING_EFFORT", _reasoning_effort),
            timeout=env.seconds("AZURE_OPENAI_TIMEOUT_SECONDS", 60),
            turn_timeout=env.seconds("TURN_TIMEOUT_SECONDS", 220),
            context_tokens=context_tokens,
            system_prompt=env.text("SYSTEM_PROMPT", SYSTEM_PROMPT),
            max_output_tokens=env.whole("AZURE_OPENAI_MAX_OUTPUT_TOKENS", 128_000, least=1),
            max_request_bytes=env.whole("MAX_REQUEST_BYTES", 20 * 1024 * 1024, least=1_024),
            max_message_bytes=env.whole("MAX_MESSAGE_BYTES", 262_144, least=1_024, most=_MOST_BYTES),
            prices=env.parsed("PRICES", _prices, {}),
            tables_endpoint=tables_endpoint,
            tables_connection_string=connection_string,
            table_prefix=env.parsed("TABLE_PREFIX", _table_prefix, "chat"),
            client_id=env.optional("AZURE_CLIENT_ID"),
            in_azure=env.optional("IDENTITY_ENDPOINT") is not None,
            insights=env.optional("APPLICATIONINSIGHTS_CONNECTION_STRING"),
            region=env.optional("REGION_NAME"),
            client_keys=env.parsed("CLIENT_KEYS", _keys, {}),
            usage_keys=env.parsed("USAGE_KEYS", _keys, {}),
            recipients=env.parsed("SUMMARY_RECIPIENTS", _addresses, ()),
            sender=env.parsed_or_none("SUMMARY_SENDER", _address),
            acs_endpoint=env.optional("ACS_ENDPOINT"),
            acs_connection_string=env.optional("ACS_CONNECTION_STRING"),
            smtp_url=env.optional("SMTP_URL"),
            outbox=env.optional("OUTBOX_DIR"),
        )
        if settings.max_tokens > settings.largest_answer:
            raise SettingsError(
                "AZURE_OPENAI_MAX_TOKENS",
                f"is {settings.max_tokens}: at most half of CONTEXT_TOKENS and {MOST_ANSWER_TOKENS}, so here"
                f" {settings.largest_answer}.",
            )
        if not settings.api_key and (shown := next(filter(_in_the_clear, settings.endpoints), None)):
            raise SettingsError(
                "AZURE_OPENAI_ENDPOINT",
                f"holds {shown!r}: without AZURE_OPENAI_API_KEY the identity's token would go there in the clear. Use"
                " https://.",
            )
        return settings

    @property
    def largest_answer(self) -> int:
        """The most tokens that a turn may ask for: half is left for what it answers, and a row must hold the text."""
        return min(self.context_tokens // 2, MOST_ANSWER_TOKENS)


class Unresolved(SettingsError):
    """The setting is a reference to Key Vault that the platform could not resolve, or not yet."""


class _Environment:
    """The environment, one setting at a time; each error names the setting."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def optional(self, name: str) -> str | None:
        value = self._environ.get(name, "").strip()
        if value.startswith("@Microsoft.KeyVault("):
            raise Unresolved(
                name,
                "still reads @Microsoft.KeyVault(…): the platform could not resolve the reference. Check that the"
                " app's identity may read the vault's secrets and that keyVaultReferenceIdentity names it.",
            )
        return value or None

    def text(self, name: str, default: str) -> str:
        return self.optional(name) or default

    def parsed(self, name: str, parse: Callable[[str], T], default: T | None = None) -> T:
        value = self.optional(name)
        if value is None:
            if default is None:
                raise SettingsError(name, "is not set. local.settings.sample.json says what it should be.")
            return default
        try:
            return parse(value)
        except (ValueError, InvalidOperation) as error:
            raise SettingsError(name, f"is malformed: {error}") from error

    def parsed_or_none(self, name: str, parse: Callable[[str], T]) -> T | None:
        return self.parsed(name, parse) if self.optional(name) else None

    def whole(self, name: str, default: int, *, least: int, most: int = 999_999_999) -> int:
        def parse(value: str) -> int:
            if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
                raise ValueError(f"{value!r} is not a whole number from {least} to {most}.")
            return int(value)

        return self.parsed(name, parse, default)

    def seconds(self, name: str, default: float) -> float:
        def parse(value: str) -> float:
            if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", value) or float(value) <= 0:
                raise ValueError(f"{value!r} is not a positive number of seconds.")
            return float(value)

        return self.parsed(name, parse, default)


def _endpoints(value: str) -> tuple[str, ...]:
    urls = [url.strip() for url in value.split(",") if url.strip()]
    if not urls:
        raise ValueError("it holds no URL.")
    return tuple(map(_endpoint, urls))


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.port == 0:
        raise ValueError(f"{url!r} is not a URL such as https://NAME.openai.azure.com.")
    if "@" in parts.netloc:  # said without it
        raise ValueError("a URL in it holds a name or password: AZURE_OPENAI_API_KEY is the place of a key.")
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r} has something behind its path: leave that out.")
    path = parts.path.rstrip("/")
    if path.endswith("/v1"):
        return f"{parts.scheme}://{parts.netloc}{path}/"
    if path:
        raise ValueError(f"{url!r} has a path that does not end in /v1.")
    return f"{parts.scheme}://{parts.netloc}/openai/v1/"


def _in_the_clear(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1")


def _tables_endpoint(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != "https" or not parts.hostname or parts.port == 0:  # a token is never sent in the clear
        raise ValueError(f"{value!r} is not a URL such as https://NAME.table.core.windows.net.")
    return value


def _connection_string(value: str) -> str:
    """Its parts hold a key: what is wrong is said without them."""
    parts = [part.partition("=") for part in value.split(";") if part.strip()]
    if not all(name.strip() and rest.strip() for name, _, rest in parts):
        raise ValueError("it has a part that is not name=value.")
    names = {name.strip().lower() for name, _, _ in parts}
    if value.lower() != "usedevelopmentstorage=true" and not (
        {"accountname", "accountkey"} <= names or {"tableendpoint", "sharedaccesssignature"} <= names
    ):
        raise ValueError("it needs AccountName and AccountKey, or TableEndpoint and SharedAccessSignature.")
    return value


def _api_key(value: str) -> str:
    if not value.isascii() or not value.isprintable():  # it goes into a header; said without it
        raise ValueError("it holds characters that no key has.")
    return value


def _reasoning_effort(value: str) -> str:
    if value not in get_args(ReasoningEffort):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(ReasoningEffort))}.")
    return value


def _deployments(value: str) -> dict[str, str]:
    found = {}
    for item in filter(None, (item.strip() for item in value.split(","))):
        name, _, model = (part.strip() for part in item.partition("="))
        if not _NAME.fullmatch(name):
            raise ValueError(f"{item!r} is not deployment=model or deployment=model@version.")
        found[name] = model
    return found


def _with_default(deployments: dict[str, str], default: str) -> dict[str, str]:
    return deployments if default in deployments else {default: "", **deployments}


def _prices(value: str) -> dict[str, Rates]:
    try:
        found = json.loads(value, parse_float=Decimal)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError('it should be a JSON object such as {"gpt-5.4-mini": {"input": 0.75, "output": 4.5}}.')
    return {name: _rates(name, rates) for name, rates in found.items()}


def _rates(name: str, given: object) -> Rates:
    if not isinstance(given, dict) or not {"input", "output"} <= given.keys():
        raise ValueError(f"{name!r} needs input and output, in USD per 1M tokens.")
    if unknown := given.keys() - {"input", "cached_input", "cache_write", "output"}:
        raise ValueError(f"{name!r} has the unknown price {min(unknown)!r}.")
    rates = {kind: _price(name, kind, amount) for kind, amount in given.items()}
    return Rates(
        input=rates["input"],
        cached_input=rates.get("cached_input", rates["input"]),
        cache_write=rates.get("cache_write", rates["input"]),
        output=rates["output"],
    )


def _price(name: str, kind: str, amount: object) -> Decimal:
    if isinstance(amount, bool) or not isinstance(amount, int | Decimal | str):
        raise ValueError(f"{kind} of {name!r} is not a number.")
    price = Decimal(amount)
    # So many digits leave room for the tokens: every cost and total is exact in the 28 digits of Decimal's arithmetic.
    if not price.is_finite() or not 0 <= price < 1_000_000 or price != round(price, 12):
        raise ValueError(f"{kind} of {name!r} is not an amount of USD with at most 12 digits after the point.")
    return price


def _keys(value: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in value.split(","))):
        name, _, hashed = (part.strip() for part in item.partition("="))
        if not _NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-fA-F]{64}", hashed):
            raise ValueError("an entry is not name=SHA-256 of the key in hex; 'make key NAME=…' prints one.")
        if name in keys or hashed.lower() in keys.values():
            raise ValueError(f"{name!r} or its key is listed twice.")
        keys[name] = hashed.lower()
    return keys


def _addresses(value: str) -> tuple[str, ...]:
    return tuple(_address(address.strip()) for address in re.split("[,;]", value) if address.strip())


def _address(value: str) -> str:
    if not _ADDRESS.fullmatch(value):
        raise ValueError(f"{value!r} is not an e-mail address.")
    return value


def _table_prefix(value: str) -> str:
    # https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#table-names
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,54}", value):
        raise ValueError(f"{value!r} is not a letter and up to 54 letters or digits.")
    return value
