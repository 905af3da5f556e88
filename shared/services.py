"""The composition root: every adapter, built of the settings on first use and never at import, so that a missing
setting is an answer and not an app without functions."""

import asyncio
import logging
import os
import signal
from functools import cache
from types import FrameType
from typing import Any

from azure.data.tables.aio import TableServiceClient

from shared.days import Days
from shared.delivery import Addressed, Delivery
from shared.endpoint import Endpoint
from shared.errors import UpstreamUnavailable
from shared.identity import Access, Identity
from shared.journal import Journal
from shared.keys import Keys
from shared.ledger import Ledger
from shared.mail import transport
from shared.model import Model
from shared.pricing import Prices
from shared.recovery import Recovery
from shared.removals import Removals
from shared.reports import Reports
from shared.reservation import Reservations, Rules, lifetime
from shared.sessions import Sessions
from shared.settings import Settings, Unresolved
from shared.tables import Table
from shared.tracing import tracing
from shared.turns import Turns

log = logging.getLogger(__name__)

_STORAGE_RETRY = {"retry_total": 3, "retry_backoff_factor": 0.2, "connection_timeout": 5, "read_timeout": 15}


# What they log of every request at INFO names session ids, and is paid for by the line.
for _talkative in ("azure", "httpx2", "openai"):
    logging.getLogger(_talkative).setLevel(logging.WARNING)


class Services:
    """What the triggers use. Belongs to the event loop that it was built in."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._identity = Identity(settings.client_id, in_azure=settings.in_azure)
        self._tables, self._tables_access = self._table_service()
        sessions_table = self._table("sessions")
        self.sessions = Sessions(sessions_table)
        self.ledger = Ledger(self._table("usage"))
        journal = Journal(tracing(settings.insights))
        self.recovery = Recovery(self.sessions, self.ledger, journal)
        self.removals = Removals(sessions_table, self.sessions, self.recovery)
        days = Days(self._table("daily"))
        self.reports = Reports(
            self.ledger,
            days,
            recovery=self.recovery,
            removals=self.removals,
            grace=lifetime(settings.turn_timeout),
        )
        self.delivery = Delivery(days, self.reports, self._addressed())
        self.client_keys = Keys("CLIENT_KEYS", settings.client_keys)
        self.usage_keys = Keys("USAGE_KEYS", settings.usage_keys)
        self._model = self._model_service()
        prices = Prices(settings.prices, settings.deployments)
        self.turns = Turns(
            Reservations(
                _rules(settings),
                sessions=self.sessions,
                prices=prices,
                recovery=self.recovery,
                removals=self.removals,
            ),
            ledger=self.ledger,
            model=self._model,
            journal=journal,
            prices=prices,
            turn_timeout=settings.turn_timeout,
        )

    async def close(self) -> None:
        """Finish the running turns, then let go of every connection."""
        await self.turns.finish()
        await self._model.close()
        await self._tables.close()
        await self._identity.close()

    def _table_service(self) -> tuple[TableServiceClient, Access]:
        options: dict[str, Any] = dict(_STORAGE_RETRY)
        if connection := self.settings.tables_connection_string:
            access = Access.of_setting("Table storage", "TABLES_CONNECTION_STRING")
            return TableServiceClient.from_connection_string(connection, **options), access
        access = Access.of_identity("Table storage", self._identity, "Storage Table Data Contributor")
        return TableServiceClient(self.settings.tables_endpoint or "", credential=self._identity, **options), access

    def _model_service(self) -> Model:
        settings, key = self.settings, self.settings.api_key
        if key:
            access = Access.of_setting("The model service", "AZURE_OPENAI_API_KEY")
        else:
            access = Access.of_identity("The model service", self._identity, "Cognitive Services OpenAI User")
        shown, effort = key or self._identity.tokens(settings.scope), settings.reasoning_effort
        return Model(
            [Endpoint(url, shown, access=access, timeout=settings.timeout) for url in settings.endpoints],
            defaults={"reasoning_effort": effort} if effort else {},
            retries=settings.max_retries,
        )

    def _addressed(self) -> Addressed:
        settings = self.settings
        return Addressed(
            sender=settings.sender or "",
            recipients=settings.recipients,
            transport=cache(lambda: transport(settings, self._identity)),
        )

    def _table(self, name: str) -> Table:
        return Table(self._tables.get_table_client(f"{self.settings.table_prefix}{name}"), self._tables_access)


def _rules(settings: Settings) -> Rules:
    return Rules(
        deployment=settings.deployment,
        deployments=frozenset(settings.deployments),
        system_prompt=settings.system_prompt,
        context_tokens=settings.context_tokens,
        max_tokens=settings.max_tokens,
        largest_answer=settings.largest_answer,
        turn_timeout=settings.turn_timeout,
    )


_current: Services | None = None


def services() -> Services:
    """The app's services. Raises SettingsError where a setting is missing or malformed, UpstreamUnavailable where the
    platform has not resolved one yet, as in the first minutes after a deployment."""
    global _current
    if _current is None:
        _current = Services(_settings())
        _finish_on_sigterm()
    return _current


def _settings() -> Settings:
    try:
        return Settings.from_env(os.environ)
    except Unresolved as error:
        log.error("%s", error)  # noqa: TRY400 - it says all that there is to say
        message = f"The app can't read {error.name} from Key Vault. See Troubleshooting in the README."
        raise UpstreamUnavailable(message, maybe_billed=False, pause=30) from error


async def close() -> None:
    """Finish the running turns and let go of everything; the next use builds anew."""
    global _current
    if _current is not None:
        closing, _current = _current, None
        await closing.close()


def _finish_on_sigterm() -> None:
    """Hold SIGTERM back until the running turns are finished, then hand it on to who waited for it before.

    The platform's worker ends with its open responses, and a turn whose caller hung up has none.
    """
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def forward(_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)

    def hold(number: int, frame: FrameType | None) -> None:
        log.info("finishing the running turns")
        loop.call_soon_threadsafe(lambda: loop.create_task(close()).add_done_callback(forward))

    try:
        signal.signal(signal.SIGTERM, hold)
    except ValueError:  # not the main thread: whoever runs this loop there decides when it ends
        log.debug("no signal handler outside the main thread")
