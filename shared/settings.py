"""The app's settings in groups, and the environment variable of each.

Each group reads its own variables and checks those that depend on each other. The environment is passed in as a
mapping; nothing here reads `os.environ`. A variable that is empty or blank counts as absent. All variables are
described in docs/settings.md and, briefly, in local.settings.sample.json.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from shared.domain.calls import ReasoningEffort
from shared.domain.limits import ANONYMOUS, OTHERS, TOTAL, Limits
from shared.domain.pricing import DEFAULT_TIER, Tariff
from shared.domain.principal import PERSON
from shared.environment import Environment
from shared.setting_values import (
    ACCEPTED,
    GUID,
    SettingsError,
    TablesClient,
    UnresolvedReference,
    is_cosmos,
    is_cosmos_emulator,
    is_remote_cleartext,
    parse_accepted,
    parse_api_key,
    parse_authority,
    parse_deployments,
    parse_guid,
    parse_key_hashes,
    parse_limits,
    parse_max_output_tokens,
    parse_model_endpoints,
    parse_names,
    parse_origins,
    parse_prices,
    parse_reasoning_effort,
    parse_storage_connection_string,
    parse_table_prefix,
    parse_tables_client,
    parse_tables_endpoint,
    parse_whole_number,
)

__all__ = [
    "AzureSettings",
    "KeySettings",
    "MailSettings",
    "ModelSettings",
    "PeopleSettings",
    "RetentionSettings",
    "Settings",
    "SettingsError",
    "TableSettings",
    "TurnSettings",
    "UnresolvedReference",
    "WebSettings",
]

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly and say so when you do not know."
MAX_ANSWER_TOKENS = 100_000  # the text of a longer answer might not fit into a table row
MIN_LEDGER_MONTHS = 2  # a summary reads rows of up to 31 days ago
MAX_OUTPUT_TOKENS = 128_000  # of the models with the longest answers
_AUTH = ("AUTH_TENANT_ID", "AUTH_CLIENT_ID", "AUTH_AUTHORITY", "AUTH_ROLES", "AUTH_ACCEPT")
_PERSON = re.compile(rf"{PERSON}{GUID}:{GUID}")
_EMBEDDING = re.compile("embed|(^|[-/])(bge|e5|gte|all-minilm)(-|$)", re.IGNORECASE)  # names of embedding models
MAX_MESSAGE_BYTES = 500_000  # upper limit of that setting: a system prompt of this size fills its row in UTF-16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The model service: endpoints, authentication, deployments, prices. `timeout` is in seconds, for the first byte
    and between chunks; `prices` are in USD per 1,000,000 tokens, by deployment or model. Deployments map to their model
    or model@version; "" if that is not configured."""

    endpoints: tuple[str, ...]  # base URLs that end in /v1/, in order of preference
    api_key: str | None = field(repr=False)  # None: authenticate with the app's identity
    embedding_endpoints: tuple[str, ...]  # as `endpoints`, of the embedding deployments; often the same
    embedding_api_key: str | None = field(repr=False)
    scope: str  # of the identity's access tokens
    deployment: str  # the default, for chat
    deployments: Mapping[str, str]  # for chat
    embedding_deployments: Mapping[str, str]
    timeout: float
    max_retries: int  # attempts after the first
    reasoning_effort: ReasoningEffort | None  # for turns that set none; None: not sent
    prices: Mapping[str, Tariff]

    @classmethod
    def read(cls, env: Environment) -> Self:
        deployment = env.text("AZURE_OPENAI_MODEL") or "gpt-5.4-mini"
        deployments = env.optional("AZURE_OPENAI_DEPLOYMENTS", parse_deployments) or {}
        endpoints = env.required("AZURE_OPENAI_ENDPOINT", parse_model_endpoints)
        api_key = env.optional("AZURE_OPENAI_API_KEY", parse_api_key)
        if deployment not in deployments:
            deployments = {deployment: "", **deployments}
        embedding = {name: model for name, model in deployments.items() if _EMBEDDING.search(model or name)}
        embedding |= env.optional("AZURE_OPENAI_EMBEDDING_DEPLOYMENTS", parse_deployments) or {}
        chat = {name: model for name, model in deployments.items() if name not in embedding}
        model = cls(
            endpoints=endpoints,
            api_key=api_key,
            embedding_endpoints=env.optional("AZURE_OPENAI_EMBEDDING_ENDPOINT", parse_model_endpoints) or endpoints,
            embedding_api_key=env.optional("AZURE_OPENAI_EMBEDDING_API_KEY", parse_api_key) or api_key,
            scope=env.text("AZURE_OPENAI_SCOPE") or "https://cognitiveservices.azure.com/.default",
            deployment=deployment,
            deployments=chat,
            embedding_deployments=embedding,
            timeout=env.seconds("AZURE_OPENAI_TIMEOUT_SECONDS", 60),
            max_retries=env.whole_number("AZURE_OPENAI_MAX_RETRIES", 2, minimum=0, maximum=10),
            reasoning_effort=env.optional("AZURE_OPENAI_REASONING_EFFORT", parse_reasoning_effort),
            prices=env.parsed("PRICES", parse_prices, {}),
        )
        model._check_tls("AZURE_OPENAI_ENDPOINT", model.endpoints, model.api_key)
        model._check_tls("AZURE_OPENAI_EMBEDDING_ENDPOINT", model.embedding_endpoints, model.embedding_api_key)
        model._check_kinds()
        model._check_prices()
        return model

    @property
    def all_deployments(self) -> Mapping[str, str]:
        return {**self.deployments, **self.embedding_deployments}

    def _check_tls(self, setting: str, endpoints: tuple[str, ...], api_key: str | None) -> None:
        cleartext = next(filter(is_remote_cleartext, endpoints), None)
        if cleartext and not api_key:
            raise SettingsError(
                setting,
                f"contains {cleartext!r}: without AZURE_OPENAI_API_KEY the identity's token would be sent there"
                " unencrypted. Use https://.",
            )

    def _check_kinds(self) -> None:
        if self.deployment in self.embedding_deployments:
            raise SettingsError(
                "AZURE_OPENAI_MODEL", f"names {self.deployment!r}, which makes embeddings. Name a deployment for chat."
            )

    def _check_prices(self) -> None:
        embedding = set(self.embedding_deployments)
        for model in self.embedding_deployments.values():
            embedding |= {model.partition("@")[0], model.replace("@", "-")}
        for name, tariff in self.prices.items():
            if name in embedding or _EMBEDDING.search(name):
                continue
            for tier in (tier for tier, rates in tariff.items() if rates.output is None):
                named = name if tier == DEFAULT_TIER else f"{name}.{tier}"
                raise SettingsError("PRICES", f"is malformed: {named!r} needs input and output, in USD per 1M tokens.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """Limits and defaults of a turn and of its request. `timeout` is in seconds; the names of the other limits end in
    their unit."""

    timeout: float  # of a whole turn, retries included
    context_tokens: int  # prompt and answer together
    system_prompt: str  # for sessions without one in their first turn
    max_tokens: int  # of an answer, for turns that set no maximum
    max_output_tokens: Mapping[str, int]  # by deployment; "": every other one
    max_message_bytes: int  # of a request body on api/*
    max_request_bytes: int  # of a request body on openai/*

    @classmethod
    def read(cls, env: Environment) -> Self:
        turns = cls(
            timeout=env.seconds("TURN_TIMEOUT_SECONDS", 220),
            context_tokens=env.whole_number("CONTEXT_TOKENS", 16_000, minimum=256),
            system_prompt=env.text("SYSTEM_PROMPT") or DEFAULT_SYSTEM_PROMPT,
            max_tokens=env.whole_number("AZURE_OPENAI_MAX_TOKENS", 800, minimum=1),
            max_output_tokens=env.parsed("AZURE_OPENAI_MAX_OUTPUT_TOKENS", parse_max_output_tokens, {}),
            max_message_bytes=env.whole_number("MAX_MESSAGE_BYTES", 262_144, minimum=1_024, maximum=MAX_MESSAGE_BYTES),
            max_request_bytes=env.whole_number("MAX_REQUEST_BYTES", 20 * 1024 * 1024, minimum=1_024),
        )
        turns._check_max_tokens()
        return turns

    @property
    def max_answer_tokens(self) -> int:
        """The largest `max_tokens` of a request: half of the context is reserved for the prompt."""
        return min(self.context_tokens // 2, MAX_ANSWER_TOKENS)

    def max_output(self, deployment: str) -> int:
        """The longest answer of a deployment, in tokens: in the worst case of openai/* calls that set no maximum, or a
        larger one."""
        return self.max_output_tokens.get(deployment, self.max_output_tokens.get("", MAX_OUTPUT_TOKENS))

    def _check_max_tokens(self) -> None:
        if self.max_tokens > self.max_answer_tokens:
            raise SettingsError(
                "AZURE_OPENAI_MAX_TOKENS",
                f"is {self.max_tokens}, but may be at most {self.max_answer_tokens}: half of CONTEXT_TOKENS, and"
                f" at most {MAX_ANSWER_TOKENS}.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """Table storage or Azure Cosmos DB for Table: `endpoint` with the app's identity, or `connection_string`, which
    wins if both are set."""

    endpoint: str | None
    connection_string: str | None = field(repr=False)
    prefix: str  # of the table names
    client: TablesClient
    cosmos: bool  # Azure Cosmos DB for Table

    @classmethod
    def read(cls, env: Environment) -> Self:
        endpoint = env.optional("TABLES_ENDPOINT", parse_tables_endpoint)
        connection_string = env.optional("TABLES_CONNECTION_STRING", parse_storage_connection_string)
        if not endpoint and not connection_string:
            raise SettingsError(
                "TABLES_ENDPOINT",
                "(or TABLES_CONNECTION_STRING) is not set. Set one of them to connect to table storage.",
            )
        prefix = env.parsed("TABLE_PREFIX", parse_table_prefix, "chat")
        address = connection_string or endpoint or ""
        default: TablesClient = "sdk" if is_cosmos(address) else "http"
        client = env.parsed("TABLES_CLIENT", parse_tables_client, default)
        if is_cosmos(address) and client != "sdk":
            raise SettingsError(
                "TABLES_CLIENT",
                f"is {client!r}, which is for Table Storage. For Azure Cosmos DB for Table leave it unset.",
            )
        cosmos = client == "sdk" and (is_cosmos(address) or is_cosmos_emulator(address))
        return cls(endpoint=endpoint, connection_string=connection_string, prefix=prefix, client=client, cosmos=cosmos)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """The daily summary email: when it is sent, to which addresses and how. `acs_endpoint`, `acs_connection_string`,
    `smtp_url` and `outbox` are alternatives. The values are text as it was set; `shared.mail` and `shared.reports`
    check them when an email is sent, so that a wrong one stops only the email."""

    schedule: str | None  # NCRONTAB, six fields, UTC; the Functions host resolves it too, and validates it
    recipients: str | None  # addresses, comma separated; None: no email
    sender: str | None
    acs_endpoint: str | None  # Azure Communication Services, by the app's identity
    acs_connection_string: str | None = field(repr=False)
    smtp_url: str | None = field(repr=False)
    outbox: str | None  # the path of a folder

    @classmethod
    def read(cls, env: Environment) -> Self:
        return cls(
            schedule=env.text("SUMMARY_SCHEDULE"),
            recipients=env.text("SUMMARY_RECIPIENTS"),
            sender=env.text("SUMMARY_SENDER"),
            acs_endpoint=env.text("ACS_ENDPOINT"),
            acs_connection_string=env.text("ACS_CONNECTION_STRING"),
            smtp_url=env.text("SMTP_URL"),
            outbox=env.text("OUTBOX_DIR"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSettings:
    """How long data is kept; None: for ever."""

    session_days: int | None  # since the session's last use
    ledger_months: int | None  # complete months before the current one

    @classmethod
    def read(cls, env: Environment) -> Self:
        days = partial(parse_whole_number, minimum=1, maximum=36_500)
        months = partial(parse_whole_number, minimum=MIN_LEDGER_MONTHS, maximum=1_200)
        return cls(
            session_days=env.optional("RETENTION_DAYS", days),
            ledger_months=env.optional("LEDGER_RETENTION_MONTHS", months),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """The callers' keys: name -> SHA-256 of the key, 64 lower-case hex digits. No key itself is stored."""

    client_keys: Mapping[str, str]  # for openai/*, and optional on api/*
    usage_keys: Mapping[str, str]  # for api/usage/*

    @classmethod
    def read(cls, env: Environment) -> Self:
        return cls(
            client_keys=env.parsed("CLIENT_KEYS", parse_key_hashes, {}),
            usage_keys=env.parsed("USAGE_KEYS", parse_key_hashes, {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleSettings:
    """Who issues people's access tokens, and for which app registration. Ids are GUIDs in lower case."""

    tenant_id: str
    client_id: str  # of the API's registration
    authority: str  # a URL without a slash at its end
    roles: frozenset[str]  # of which a person needs one; empty: none is needed
    accepted: frozenset[str]  # "people", "keys" (client keys), or both

    @classmethod
    def read(cls, env: Environment) -> Self | None:
        """None if no AUTH_ setting is set: people do not sign in."""
        if not any(map(env.text, _AUTH)):
            return None
        return cls(
            tenant_id=env.required("AUTH_TENANT_ID", parse_guid),
            client_id=env.required("AUTH_CLIENT_ID", parse_guid),
            authority=env.parsed("AUTH_AUTHORITY", parse_authority, "https://login.microsoftonline.com"),
            roles=env.parsed("AUTH_ROLES", parse_names, frozenset()),
            accepted=env.parsed("AUTH_ACCEPT", parse_accepted, ACCEPTED),
        )

    @property
    def issuer(self) -> str:
        return f"{self.authority}/{self.tenant_id}/v2.0"

    @property
    def keys_url(self) -> str:
        return f"{self.authority}/{self.tenant_id}/discovery/v2.0/keys"

    @property
    def authorize_url(self) -> str:
        return f"{self.authority}/{self.tenant_id}/oauth2/v2.0/authorize"

    @property
    def scope(self) -> str:
        return f"api://{self.client_id}/access_as_user"

    @property
    def own_scope(self) -> str:
        """The same for clients under the API's own registration, such as the chat page: refreshed by its URI, Entra
        refuses it (AADSTS90009)."""
        return f"{self.client_id}/access_as_user"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """What web pages may do that another server delivers."""

    cors_origins: frozenset[str]  # origins whose pages may call the app; {"*"}: all

    @classmethod
    def read(cls, env: Environment) -> Self:
        return cls(cors_origins=env.parsed("CORS_ORIGINS", parse_origins, frozenset()))


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSettings:
    """The platform that the app runs on."""

    client_id: str | None  # of the user-assigned identity
    in_azure: bool  # True if the platform provides an identity endpoint
    insights: str | None  # connection string of Application Insights; None: no tracing
    region: str | None

    @classmethod
    def read(cls, env: Environment) -> Self:
        return cls(
            client_id=env.text("AZURE_CLIENT_ID"),
            in_azure=env.text("IDENTITY_ENDPOINT") is not None,
            insights=env.text("APPLICATIONINSIGHTS_CONNECTION_STRING"),
            region=env.text("REGION_NAME"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, parsed and checked. Each group's docstring gives its units."""

    tables: TableSettings
    model: ModelSettings
    turns: TurnSettings
    mail: MailSettings
    keys: KeySettings
    people: PeopleSettings | None
    web: WebSettings
    azure: AzureSettings
    limits: Limits
    retention: RetentionSettings

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Raises SettingsError, which names the first variable that is missing or malformed; UnresolvedReference if
        that variable is an unresolved Key Vault reference."""
        env = Environment(environ)
        settings = cls(
            tables=TableSettings.read(env),
            model=ModelSettings.read(env),
            turns=TurnSettings.read(env),
            mail=MailSettings.read(env),
            keys=KeySettings.read(env),
            people=PeopleSettings.read(env),
            web=WebSettings.read(env),
            azure=AzureSettings.read(env),
            limits=env.parsed("LIMITS", parse_limits, Limits()),
            retention=RetentionSettings.read(env),
        )
        settings._check_limits()
        settings._check_fallbacks()
        settings._check_max_output_tokens()
        return settings

    def _check_limits(self) -> None:
        keys = [f"key:{name}" for name in self.keys.client_keys]
        for name in self.limits.by_name:
            if name not in (TOTAL, ANONYMOUS, OTHERS, *keys) and not (self.people and _PERSON.fullmatch(name)):
                names = ", ".join(map(repr, keys)) or "none"
                raise SettingsError(
                    "LIMITS",
                    f"has the unknown caller {name!r}. Known are 'total', 'anonymous', '*', 'session',"
                    f" user:TENANT:OBJECT_ID where people sign in, and the names in CLIENT_KEYS: {names}.",
                )

    def _check_fallbacks(self) -> None:
        for name, limit in self.limits.by_name.items():
            deployment = limit.fallback_deployment
            if deployment is None:
                continue
            if name == TOTAL or not limit.in_usd:
                raise SettingsError(
                    "LIMITS",
                    f"has a fallback_deployment in {name!r}, where it has no effect: it needs usd_per_day or"
                    " usd_per_month beside it, of one caller, of '*' or of 'anonymous'.",
                )
            if deployment not in self.model.deployments:
                listed = ", ".join(sorted(self.model.deployments))
                raise SettingsError("LIMITS", f"names the unknown deployment {deployment!r}. For chat: {listed}.")

    def _check_max_output_tokens(self) -> None:
        if unknown := set(self.turns.max_output_tokens) - {"", *self.model.deployments}:
            raise SettingsError("AZURE_OPENAI_MAX_OUTPUT_TOKENS", f"names the unknown deployment {min(unknown)!r}.")
