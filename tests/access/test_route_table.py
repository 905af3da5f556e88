"""Who may call which route: every route that function_app.py declares, with every kind of caller."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from pathlib import Path

import httpx
import pytest

from local.keys import line
from shared import services as composition
from shared.web.unknown import PREFIXES
from tests.conftest import FUNCTION_KEY
from tests.support import declared
from tests.support.entra import ADA, BOB, CAROL, EntraIssuer
from tests.support.indexed import indexed

CLIENT_KEY, USAGE_KEY = "a-client-key-of-the-tests", "a-usage-key-of-the-tests"


class Rule(Enum):
    """What a route is; the test's own list, so that a wrong declaration is found."""

    PUBLIC = "public"
    CHAT = "chat"  # function key or, where people sign in, a person or client key
    OWN = "a named caller's own sessions"  # the same, and a client key too
    OPENAI = "openai"  # client key or person
    LIMITS = "limits"
    USAGE = "usage"


RULES = {
    Rule.PUBLIC: {
        *("health", "sign_in", "openapi", "home", "chat_page", "docs_page", "usage_page", "page_file"),
        *("preflight_api", "preflight_openai"),
        *(f"zz_{prefix}" for prefix in PREFIXES),
    },
    Rule.CHAT: {
        *("chat", "session", "update_session", "erase_session", "messages", "clear_messages", "export_session"),
        *("stop_turn", "about"),
    },
    Rule.OWN: {"sessions", "claim_session", "erase_own_sessions", "erasure_of_own_sessions"},
    Rule.OPENAI: {
        *("completion", "completion_of_deployment", "embedding", "embedding_of_deployment"),
        *(
            prefix + name
            for prefix in ("", "azure_")
            for name in (
                *("models", "model", "response", "stored_response", "delete_response", "cancel_response"),
                *("input_items", "new_conversation", "conversation", "update_conversation", "erase_conversation"),
                *("add_items", "items", "item", "delete_item"),
            )
        ),
    },
    Rule.LIMITS: {"limits"},
    Rule.USAGE: {"usage_of_limits", "usage_of_day", "usage_of_days", "email_usage_of_day"},
}
IN = "let in"
EVERYTHING: dict[Rule, object] = dict.fromkeys(Rule, IN)
NONE: dict[Rule, object] = dict.fromkeys(Rule, 401) | {Rule.PUBLIC: IN}
KEY = NONE | {Rule.CHAT: IN, Rule.OWN: IN, Rule.OPENAI: IN, Rule.LIMITS: IN}
USAGE = NONE | {Rule.LIMITS: IN, Rule.USAGE: IN}
PERSON = KEY | {Rule.USAGE: 403}
FUNCTION = NONE | {Rule.CHAT: IN, Rule.LIMITS: IN}

# AUTH_ACCEPT (None: people do not sign in) -> caller -> rule -> what every such route does
TABLE: dict[str | None, dict[str, dict[Rule, object]]] = {
    "people,keys": {
        "no credentials": NONE,
        "function key": NONE,
        "client key": KEY,
        "usage key": USAGE,
        "Ada": PERSON,
        "Bob": PERSON,
        "administrator": EVERYTHING,
    },
    "people": {
        "no credentials": NONE,
        "function key": NONE,
        "client key": NONE,
        "usage key": USAGE,
        "Ada": PERSON,
        "Bob": PERSON,
        "administrator": EVERYTHING,
    },
    "keys": {
        "no credentials": NONE,
        "function key": NONE,
        "client key": KEY,
        "usage key": USAGE,
        "Ada": NONE,
        "Bob": NONE,
        "administrator": NONE,
    },
    None: {
        "no credentials": NONE,
        "function key": FUNCTION,
        "client key": NONE | {Rule.OPENAI: IN},  # the platform requires a function key
        "usage key": NONE | {Rule.USAGE: IN},
        "Ada": NONE,
        "Bob": NONE,
        "administrator": NONE,
    },
}


def routes() -> dict[str, tuple[str, str]]:
    """Function name -> a method and path of every HTTP trigger."""
    filled = {"date": "2026-01-01", "file": "api.js", "response_id": "resp_a", "conversation_id": "conv_a"}
    return {
        name: (
            "DELETE" if name.startswith("zz_") else sorted(binding["methods"])[0],
            "/" + re.sub(r"\{\*?(\w+)\}", lambda match: filled.get(match[1], "a"), binding["route"].strip("/")),
        )
        for name, binding in declared.triggers().items()
        if binding["type"] == "httpTrigger"
    }


def test_every_route_has_one_rule() -> None:
    """A new route needs one: add it to RULES."""
    named = [name for names in RULES.values() for name in names]
    assert sorted(named) == sorted(routes())


@pytest.fixture(scope="module")
def issuer() -> Iterator[EntraIssuer]:
    with EntraIssuer() as server:
        yield server


@pytest.fixture(params=TABLE, ids=str)
def accepted(request: pytest.FixtureRequest) -> str | None:
    value: str | None = request.param
    return value


@pytest.fixture
async def client(
    environ: dict[str, str], issuer: EntraIssuer, accepted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    keys = {"CLIENT_KEYS": line("ann", CLIENT_KEY), "USAGE_KEYS": line("reader", USAGE_KEY)}
    mail = {"SUMMARY_RECIPIENTS": "ops@example.com", "OUTBOX_DIR": str(tmp_path)}
    people = issuer.environ | {"AUTH_ACCEPT": accepted} if accepted else {}
    for name, value in (environ | keys | mail | people).items():
        monkeypatch.setenv(name, value)
    transport = httpx.ASGITransport(indexed())
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client
    await composition.close()


def credentials(caller: str, issuer: EntraIssuer) -> dict[str, str]:
    match caller:
        case "no credentials":
            return {}
        case "function key":
            return {"x-functions-key": FUNCTION_KEY}
        case "client key":
            return {"api-key": CLIENT_KEY}
        case "usage key":
            return {"authorization": f"Bearer {USAGE_KEY}"}
        case _:
            return issuer.bearer({"Ada": ADA, "Bob": BOB, "administrator": CAROL}[caller])


async def test_every_route_lets_in_whom_its_rule_names(
    client: httpx.AsyncClient, issuer: EntraIssuer, accepted: str | None
) -> None:
    rules = {name: rule for rule, names in RULES.items() for name in names}
    wrong: list[object] = []
    for name, (method, path) in routes().items():
        for caller, expected in TABLE[accepted].items():
            response = await client.request(method, path, headers=credentials(caller, issuer))
            shown = response.status_code if response.status_code in (401, 403) else IN
            if shown != expected[rules[name]] or response.status_code >= 500:
                wrong.append((name, caller, response.status_code))
            if shown != IN and accepted:
                wrong += _unexplained(name, caller, accepted, response)
    assert wrong == []


def _unexplained(name: str, caller: str, accepted: str, response: httpx.Response) -> list[object]:
    """What is wrong with a refusal: each explains itself, in OpenAI's format on openai/*, and says where to sign in."""
    error = json.loads(response.content)["error"]
    fields = {"message", "type", "param", "code"} if name in RULES[Rule.OPENAI] else {"code", "message", "param"}
    challenge = response.headers.get("www-authenticate", "")
    names_authority = "authorization_uri=" in challenge and "access_as_user" in challenge
    is_right = {*error} == fields and names_authority == (response.status_code == 401 and "people" in accepted)
    return [] if is_right and "eyJ" not in response.text else [(name, caller, response.text, challenge)]
