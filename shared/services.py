"""The composition root. Every adapter is built from the settings on first use, not at import, so that a missing setting
causes an error response and not an app without functions."""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from types import FrameType
from typing import TYPE_CHECKING

from shared.access.authentication import Authenticator
from shared.access.identity import Identity, ServiceAccess
from shared.access.keys import Keys
from shared.domain.clock import Clock, SystemClock
from shared.domain.pricing import Prices
from shared.environment import Environment
from shared.errors import UpstreamUnavailable
from shared.model.chat_completions import ChatCompletions
from shared.model.endpoint import Endpoint
from shared.model.service import ModelService, ModelServices
from shared.reports.limits import LimitReports
from shared.settings import ModelSettings, PeopleSettings, Settings, SettingsError, UnresolvedReference, WebSettings
from shared.storage.connect import connect
from shared.storage.days import Days
from shared.storage.deletion import Deletions
from shared.storage.indexes import Indexes
from shared.storage.ledger import Ledger
from shared.storage.owner_erasures import OwnerErasures
from shared.storage.owner_index import OwnerIndex
from shared.storage.retention import Retention
from shared.storage.sessions import Sessions
from shared.storage.tables import Table
from shared.telemetry.call_log import CallLog
from shared.telemetry.tracing import tracing
from shared.turns.admission import Admission
from shared.turns.engine import Turns
from shared.turns.ports import Dialect
from shared.turns.recovery import Recovery
from shared.turns.requests import TurnLimits
from shared.turns.reservation import Reservations, call_lifetime
from shared.turns.sessions import SessionAccess

if TYPE_CHECKING:
    from shared.maintenance import Maintenance
    from shared.reports.daily import Reports
    from shared.reports.delivery import Delivery, MailConfig
    from shared.turns.conversations import ConversationAccess

log = logging.getLogger(__name__)

CLOCK: Clock = SystemClock()

# They log every request at INFO, with session IDs, and Azure bills for each line.
for _verbose in ("azure", "httpx2", "openai"):
    logging.getLogger(_verbose).setLevel(logging.WARNING)


class Services:
    """All objects that the triggers use. They belong to the event loop in which they were built."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.chat_completions: Dialect = ChatCompletions()
        self._identity = Identity(settings.azure.client_id, in_azure=settings.azure.in_azure, clock=clock)
        self._model = _model_services(settings.model, self._identity, clock)
        self._tables = connect(settings.tables, self._identity, clock)
        sessions_table, usage_table = self._table("sessions"), self._table("usage")

        call_log = CallLog(tracing(settings.azure.insights))
        prices = Prices(settings.model.prices, settings.model.all_deployments, clock)
        self._ledger = ledger = Ledger(usage_table, clock)
        admission = Admission(ledger, settings.limits, clock)
        self._sessions = sessions = Sessions(sessions_table, clock)
        self._days = days = Days(self._table("daily"))
        self._owners = owners = OwnerIndex(sessions_table, sessions, clock)
        self._deletions = deletions = Deletions(sessions_table, sessions, owners, ledger, days, clock)
        self.erasures = OwnerErasures(sessions_table, sessions, deletions, owners, clock)
        session_days = settings.retention.session_days
        self._retention = Retention(sessions_table, sessions, deletions, clock, days=session_days)
        self._indexes = indexes = Indexes(self._retention, owners)
        self._recovery = recovery = Recovery(sessions, ledger, call_log, clock)
        self.turns = Turns(
            Reservations(
                _turn_limits(settings),
                sessions=sessions,
                deletions=deletions,
                indexes=indexes,
                recovery=recovery,
                prices=prices,
                admission=admission,
                clock=clock,
            ),
            admission,
            ledger=ledger,
            model=self._model,
            call_log=call_log,
            prices=prices,
            clock=clock,
            turn_timeout=settings.turns.timeout,
        )
        self.sessions = SessionAccess(sessions, owners, deletions, recovery, clock)
        self.limits = LimitReports(ledger, settings.limits, clock)
        self.authenticator = _authenticator(settings, clock)

    # What no chat turn needs is imported and built by its first use.

    @cached_property
    def embeddings(self) -> Dialect:
        from shared.model.embeddings import Embeddings

        return Embeddings()

    @cached_property
    def conversations(self) -> "ConversationAccess":
        from shared.turns.conversations import ConversationAccess

        return ConversationAccess(
            self._sessions,
            self.sessions,
            indexes=self._indexes,
            recovery=self._recovery,
            clock=self.clock,
            deployment=self.settings.model.deployment,
        )

    @cached_property
    def reports(self) -> "Reports":
        from shared.reports.daily import Reports

        grace = call_lifetime(self.settings.turns.timeout)
        limits = self.settings.limits
        return Reports(self._ledger, self._days, self._recovery, self.clock, limits=limits, grace=grace)

    @cached_property
    def delivery(self) -> "Delivery":
        from shared.reports.delivery import Delivery

        config = _mail_config(self.settings, self._identity, self.clock)
        return Delivery(self._days, self.reports, config, self.clock)

    @cached_property
    def maintenance(self) -> "Maintenance":
        from shared.maintenance import Maintenance
        from shared.storage.cursors import Cursors
        from shared.storage.ledger_retention import LedgerRetention

        months = self.settings.retention.ledger_months
        return Maintenance(
            {
                "recovery": self.reports.recover,
                "deletions": self._deletions.finish_interrupted,
                "erasures": self.erasures.resume,
                "owner_index": self._owners.enter_older,
                "retention_index": self._retention.enter_older,
                "retention": self._retention.erase_expired,
                "ledger_retention": LedgerRetention(self._table("usage"), self.clock, months=months).delete_old,
                "email": self.delivery.send_missed,
            },
            Cursors(self._table("daily")),
            self.clock,
        )

    def max_output(self, deployment: str) -> int:
        """The most output tokens of the deployment's model: what the service has named in a refusal, or the setting."""
        return self._model.max_output(deployment) or self.settings.turns.max_output(deployment)

    async def close(self) -> None:
        """Finish the running turns, then close every connection."""
        await self.turns.finish()
        await self._model.close()
        await self._tables.close()
        await self._identity.close()

    def _table(self, name: str) -> Table:
        return self._tables.table(f"{self.settings.tables.prefix}{name}")


def _authenticator(settings: Settings, clock: Clock) -> Authenticator:
    client_keys = Keys("CLIENT_KEYS", settings.keys.client_keys)
    usage_keys = Keys("USAGE_KEYS", settings.keys.usage_keys)
    if settings.people is None:
        return Authenticator(client_keys, usage_keys)
    from shared.access.entra import Entra

    return Authenticator(client_keys, usage_keys, settings.people, Entra(settings.people, clock))


def _model_services(settings: ModelSettings, identity: Identity, clock: Clock) -> ModelServices:
    def service(endpoints: Sequence[str], api_key: str | None, setting: str) -> ModelService:
        if api_key:
            access = ServiceAccess.by_setting("The model service", setting)
        else:
            access = ServiceAccess.by_identity("The model service", identity, "Cognitive Services OpenAI User")
        key, effort = api_key or identity.token_provider(settings.scope), settings.reasoning_effort
        return ModelService(
            [Endpoint(url, key, access=access, timeout=settings.timeout, clock=clock) for url in endpoints],
            defaults={"reasoning_effort": effort} if effort else {},
            retries=settings.max_retries,
            clock=clock,
        )

    default = service(settings.endpoints, settings.api_key, "AZURE_OPENAI_API_KEY")
    if (settings.embedding_endpoints, settings.embedding_api_key) == (settings.endpoints, settings.api_key):
        return ModelServices(default, {})
    own_key = settings.embedding_api_key != settings.api_key
    setting = "AZURE_OPENAI_EMBEDDING_API_KEY" if own_key else "AZURE_OPENAI_API_KEY"
    embeddings = service(settings.embedding_endpoints, settings.embedding_api_key, setting)
    return ModelServices(default, dict.fromkeys(settings.embedding_deployments, embeddings))


def _mail_config(settings: Settings, identity: Identity, clock: Clock) -> "MailConfig":
    from shared.mail.addresses import recipients, sender
    from shared.mail.choose import transport
    from shared.reports.delivery import MailConfig

    return MailConfig(
        schedule=settings.mail.schedule,
        sender=cache(lambda: sender(settings.mail)),
        recipients=cache(lambda: recipients(settings.mail)),
        transport=cache(lambda: transport(settings.mail, identity, clock)),
    )


def _turn_limits(settings: Settings) -> TurnLimits:
    return TurnLimits(
        deployment=settings.model.deployment,
        deployments=frozenset(settings.model.deployments),
        system_prompt=settings.turns.system_prompt,
        context_tokens=settings.turns.context_tokens,
        max_tokens=settings.turns.max_tokens,
        max_answer_tokens=settings.turns.max_answer_tokens,
        turn_timeout=settings.turns.timeout,
        callers=settings.limits,
    )


_current: Services | None = None


def services() -> Services:
    """The app's services. Raises SettingsError if a setting is missing or malformed, and UpstreamUnavailable if the
    platform has not resolved a Key Vault reference yet, as in the first minutes after a deployment."""
    global _current
    if _current is None:
        _current = Services(_settings(), CLOCK)
        _finish_on_sigterm()
    return _current


def people_sign_in() -> bool:
    """True if people's access tokens take the place of function keys. False while a setting of it is missing or wrong:
    the platform then goes on to require function keys, and requests get that error."""
    return people_settings() is not None


def people_settings() -> PeopleSettings | None:
    """How people sign in, also while another setting is wrong: a page must be able to read that error. None if they do
    not, or while a setting of it is missing or wrong."""
    with suppress(SettingsError):
        return PeopleSettings.read(Environment(os.environ))
    return None


def cors_origins() -> frozenset[str]:
    """The origins of CORS_ORIGINS, also while another setting is wrong: a page must be able to read that error. Empty
    if CORS_ORIGINS is absent or itself wrong."""
    if _current:
        return _current.settings.web.cors_origins
    with suppress(SettingsError):
        return WebSettings.read(Environment(os.environ)).cors_origins
    return frozenset()


def _settings() -> Settings:
    try:
        return Settings.from_env(os.environ)
    except UnresolvedReference as error:
        log.error("%s", error)  # noqa: TRY400 - the message is complete
        message = f"The app can't read {error.name} from Key Vault. See '503: Key Vault' in docs/troubleshooting.md."
        raise UpstreamUnavailable(message, maybe_billed=False, pause=30) from error


async def close() -> None:
    """Finish the running turns and close every connection. The next use builds new services."""
    global _current
    if _current is not None:
        closing, _current = _current, None
        await closing.close()


def _finish_on_sigterm() -> None:
    """Delay SIGTERM until the running turns are finished, then pass it to the previous handler.

    The platform's worker waits only for open responses, and a turn whose client disconnected has none.
    """
    loop, previous = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def forward(_: object) -> None:
        signal.signal(signal.SIGTERM, previous)
        signal.raise_signal(signal.SIGTERM)

    def finish(number: int, frame: FrameType | None) -> None:
        log.info("finishing the running turns")
        loop.call_soon_threadsafe(lambda: loop.create_task(close()).add_done_callback(forward))

    try:
        signal.signal(signal.SIGTERM, finish)
    except ValueError:  # not the main thread: the program that runs this loop handles signals
        log.debug("no signal handler outside the main thread")
