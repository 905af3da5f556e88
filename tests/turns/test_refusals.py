"""What the app makes of a model service's refusals, in the words of each service.

Each scenario is a report from public trackers, with its source beside it.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest

from local.keys import line
from shared.domain.calls import Call, State
from shared.services import services
from tests.conftest import Serve, Tables
from tests.model.test_refusal_words import (
    MALFORMED,
    MODELS_FAULT,
    NEW,
    NEW_REFUSED,
    NO_CREDIT,
    OLD,
    QUOTA,
    RATE_LIMITS,
    TOO_LONG,
    TOOLS_REFUSED,
    USE_NEW,
    foundry,
    openai_error,
)
from tests.support import azure_openai_answers as answers
from tests.support.azure_openai import AzureOpenAI, Request
from tests.support.chat_client import answer, fill, ledger, send_message, states
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import Raw, RudeUpstream, end, text, usage

JSON = dict[str, Any]
KEY = "a-client-key-of-the-tests"


@pytest.fixture
def fake() -> Iterator[RudeUpstream]:
    with RudeUpstream() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CLIENT_KEYS": line("app", KEY), "AZURE_OPENAI_DEPLOYMENTS": "chat, another"}


def refusal(status: int, body: Any) -> Raw:
    content = body if isinstance(body, str) else json.dumps(body)
    return Raw([content.encode()], status=status, media_type="application/json", billed=False)


def refuse(fake: RudeUpstream, status: int, body: Any, when: Callable[[Request], bool] = lambda _: True) -> None:
    """Every request for which `when` holds is refused."""
    fake.raw_responder = lambda request: refusal(status, body) if when(request) else None


async def openai_post(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **fields}
    return await api.post("/openai/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})


EXTRA = {"type": "extra_forbidden", "loc": ["body", "frequency_penalty"], "msg": "Extra inputs are not permitted"}
SHAPES: dict[str, Any] = {
    "FastAPI": {"detail": [EXTRA]},
    "editor-code-assistant/eca#231": {"object": "error", "message": {"detail": [EXTRA]}, "param": None},
    "vLLM": {"object": "error", "message": repr([EXTRA | {"loc": ("body", "frequency_penalty")}]), "code": 400},
}


ABOUT_THE_ACCOUNT: list[tuple[int, Any]] = [
    (403, openai_error("This request requires more credits, or fewer max_tokens.")),  # OpenRouter
    (402, openai_error("Insufficient Balance")),
    (402, ""),
    (400, openai_error("Your credit balance is too low to access the Anthropic API.")),
]


class TestNoCredit:
    """`insufficient_quota` has the status of a rate limit, but waiting does not help."""

    @pytest.fixture
    def environ(self, environ: dict[str, str]) -> dict[str, str]:
        return environ | {"AZURE_OPENAI_MAX_RETRIES": "2"}

    @pytest.mark.parametrize("report", ["langchain-ai/langchainjs#1929", "one-api's", "a page"])
    async def test_it_is_reported_at_once_and_never_retried(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, report: str
    ) -> None:
        status, body = NO_CREDIT[report]
        refuse(fake, status, body)
        for attempt in (1, 2):  # the second finds no open circuit
            response = await send_message(api)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (429, "insufficient_quota")
            assert "billing" in error["message"]
            assert response.headers["x-should-retry"] == "false"
            assert "retry-after" not in response.headers
            assert len(fake.requests) == attempt
        assert await states(tables) == [State.FAILED] * 2
        await assert_conserved(tables, fake)

    @pytest.mark.parametrize("event", [openai_error(QUOTA, code="insufficient_quota"), openai_error(QUOTA)])
    async def test_it_may_come_inside_a_200(self, api: httpx.AsyncClient, fake: RudeUpstream, event: JSON) -> None:
        fake.stream(event, billed=False)
        response = await send_message(api)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "insufficient_quota")
        assert len(fake.requests) == 1

    async def test_openai_clients_know_it_and_do_not_retry(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        refuse(fake, 429, NO_CREDIT["langchain-ai/langchainjs#1929"][1])
        client = openai.AsyncOpenAI(base_url=f"{str(api.base_url).rstrip('/')}/openai/v1", api_key=KEY, max_retries=2)
        async with client:
            with pytest.raises(openai.RateLimitError) as raised:
                await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}])
        assert (raised.value.code, raised.value.type) == ("insufficient_quota", "insufficient_quota")
        assert len(fake.requests) == 1

    @pytest.mark.parametrize(("status", "body"), ABOUT_THE_ACCOUNT)
    async def test_openai_routes_have_words_of_their_own_for_other_statuses(
        self, api: httpx.AsyncClient, fake: RudeUpstream, status: int, body: Any
    ) -> None:
        """A 403 of the service would read as if the caller's own key or credit were at fault."""
        refuse(fake, status, body)
        response = await openai_post(api)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (429, "insufficient_quota", "insufficient_quota")
        assert error["message"].endswith("The operator must check the plan and billing of the model service account.")
        assert response.headers["x-should-retry"] == "false"

    async def test_openai_routes_return_the_429_of_the_service(
        self, api: httpx.AsyncClient, fake: RudeUpstream
    ) -> None:
        body = NO_CREDIT["langchain-ai/langchainjs#1929"][1]
        refuse(fake, 429, body)
        response = await openai_post(api)
        assert (response.status_code, response.json()) == (429, body)
        assert response.headers["x-should-retry"] == "false"

    async def test_another_endpoint_is_tried(
        self, serve: Serve, environ: dict[str, str], fake: RudeUpstream, tables: Tables
    ) -> None:
        refuse(fake, 429, NO_CREDIT["words alone"][1])
        with AzureOpenAI() as second:
            second.fault(503, retry_after_ms=10)  # after it the call asks the second again, but not the first
            async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{fake.endpoint}, {second.endpoint}"}) as api:
                assert (await send_message(api)).status_code == 200
                assert (len(fake.requests), len(second.requests)) == (1, 2)
                fake.raw_responder = lambda _: None  # paid: no cooldown
                assert (await send_message(api)).status_code == 200
            assert (len(fake.requests), len(second.requests)) == (2, 2)
            await assert_conserved(tables, fake, second)

    async def test_rate_limit_is_still_one(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        fake.raw(json.dumps(RATE_LIMITS["Azure"]).encode(), status=429, media_type="application/json", billed=False)
        assert (await send_message(api)).status_code == 200
        assert len(fake.requests) == 2


class TestContextTooLong:
    @pytest.mark.parametrize("report", ["vllm-project/vllm#20409", "Mistral", "ggml-org/llama.cpp#15780"])
    async def test_window_shrinks(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, report: str
    ) -> None:
        for _ in range(3):
            await answer(api)
        refuse(fake, *TOO_LONG[report], when=lambda request: len(request.body["messages"]) > 6)
        for _ in range(3):
            await answer(api)
        assert len(fake.requests) <= 3 + 6
        await assert_conserved(tables, fake)

    async def test_window_that_is_named_is_kept_at_once(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        """Half of the history would still be too long, however often the caller tries."""
        await fill(tables, 40)
        prompt = answers.prefixes  # tokens as the fake counts them
        limit = 400
        words = (
            f"Prompt contains 9999 tokens and 0 draft tokens, too large for model with {limit} maximum context length"
        )
        refuse(fake, 400, {"object": "error", "message": words}, lambda each: prompt(each.body)[-1][1] + 50 > limit)
        for _ in range(5):
            await answer(api, max_tokens=50)
        assert len(fake.requests) <= 5 + 2

    async def test_window_is_halved_until_it_fits_if_no_size_is_named(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        await fill(tables, 40)
        refuse(fake, *TOO_LONG["ggml-org/llama.cpp#15780"], when=lambda request: len(request.body["messages"]) > 6)
        for _ in range(3):
            await answer(api)
        assert len(fake.requests) <= 3 + 5

    @pytest.mark.parametrize("report", ["vllm-project/vllm#4667", "Anthropic", "ggml-org/llama.cpp#19774"])
    async def test_prompt_that_no_window_makes_short_enough_is_a_400(
        self, api: httpx.AsyncClient, fake: RudeUpstream, report: str
    ) -> None:
        refuse(fake, *TOO_LONG[report])
        response = await send_message(api)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_too_long")
        assert len(fake.requests) == 1


class TestMalformed:
    """llama.cpp answers 500 to requests that fail again each time."""

    @pytest.fixture
    def environ(self, environ: dict[str, str]) -> dict[str, str]:
        return environ | {"AZURE_OPENAI_MAX_RETRIES": "2"}

    async def test_internal_error_that_blames_the_request_is_a_400(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        words = MALFORMED["ggml-org/llama.cpp#13566"]
        refuse(fake, 500, {"error": {"code": 500, "message": words, "type": "server_error"}})
        response = await send_message(api)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["message"]) == (400, "invalid_request", words)
        assert len(fake.requests) == 1
        assert await states(tables) == [State.FAILED]

    async def test_answer_that_llama_could_not_parse_is_retried(
        self, api: httpx.AsyncClient, fake: RudeUpstream
    ) -> None:
        error = {"error": {"code": 500, "message": MODELS_FAULT, "type": "server_error"}}
        fake.raw(json.dumps(error).encode(), status=500, media_type="application/json", billed=False)
        assert (await send_message(api)).status_code == 200


class TestWords:
    @pytest.mark.parametrize("shape", SHAPES)
    async def test_refusal_is_in_plain_words_with_its_field(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, shape: str
    ) -> None:
        refuse(fake, 422, SHAPES[shape])
        response = await send_message(api)
        expected = "frequency_penalty: Extra inputs are not permitted"
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_request")
        assert (error["message"], error["param"]) == (expected, "frequency_penalty")
        passed_on = await openai_post(api)
        assert (passed_on.status_code, passed_on.json()["error"]["message"]) == (422, expected)
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 2

    @pytest.mark.parametrize("body", ["", "<html><body>400</body></html>", '{"error": {"message": {"a": 1}}}', "null"])
    async def test_refusal_without_words_gets_ours(self, api: httpx.AsyncClient, fake: RudeUpstream, body: str) -> None:
        refuse(fake, 400, body)
        assert (await send_message(api)).json()["error"]["message"] == "The model service rejected the request."

    async def test_error_in_mid_stream_is_in_plain_words(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        fake.stream(
            {"choices": [{"index": 0, "delta": {"content": "hel"}}]},
            {"error": {"message": repr({"detail": [{"msg": "the engine died"}]})}},
        )
        response = await send_message(api, stream=True)
        assert "error: the engine died" in response.text


def sends(name: str) -> Callable[[Request], bool]:
    return lambda request: name in request.body


def maxima(fake: RudeUpstream) -> list[JSON]:
    return [{name: request.body[name] for name in (OLD, NEW) if name in request.body} for request in fake.requests]


class TestMaximum:
    @pytest.mark.parametrize("report", ["Foundry's Mistral", "older models"])
    async def test_deployment_that_refuses_the_new_name_gets_the_old_one_from_then_on(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, report: str
    ) -> None:
        refuse(fake, *NEW_REFUSED[report], when=sends(NEW))
        for _ in range(2):
            await answer(api, max_tokens=50)
        assert (await openai_post(api, max_completion_tokens=60, stream=True)).status_code == 200
        await answer(api, session="other", deployment="another", max_tokens=70)
        assert maxima(fake) == [{NEW: 50}, {OLD: 50}, {OLD: 50}, {OLD: 60}, {NEW: 70}, {OLD: 70}]
        assert {entry.call.state for entry in await assert_conserved(tables, fake)} == {State.SETTLED}

    async def test_deployment_that_refuses_the_old_name_gets_the_new_one(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        refuse(fake, 400, openai_error(USE_NEW, param=OLD, code="unsupported_parameter"), when=sends(OLD))
        for _ in range(2):
            assert (await openai_post(api, max_tokens=60)).status_code == 200
        assert maxima(fake) == [{OLD: 60}, {NEW: 60}, {NEW: 60}]
        await assert_conserved(tables, fake)

    @pytest.mark.parametrize(
        ("both", "sent"),
        [({OLD: 40, NEW: 60}, {OLD: 40}), ({OLD: None, NEW: 60}, {OLD: 60}), ({OLD: None, NEW: None}, {})],
    )
    async def test_caller_who_sends_both_names_keeps_the_value_under_the_one_that_is_taken(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, both: JSON, sent: JSON
    ) -> None:
        refuse(fake, 422, foundry(NEW), when=sends(NEW))
        assert (await openai_post(api, **both)).status_code == 200
        assert maxima(fake)[1:] == [sent]
        await assert_conserved(tables, fake)

    async def test_deployment_that_refuses_both_names_gets_two_requests(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.raw_responder = lambda request: refusal(422, foundry(NEW if NEW in request.body else OLD))
        for requests in (2, 4):
            assert (await send_message(api)).status_code == 400
            assert len(fake.requests) == requests
        assert await states(tables) == [State.FAILED] * 2

    async def test_value_that_is_refused_is_not_renamed(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        refuse(fake, 400, openai_error("Invalid 'max_completion_tokens': below the minimum.", param=NEW))
        assert (await send_message(api)).status_code == 400
        assert len(fake.requests) == 1

    async def test_ten_concurrent_turns_all_learn_it(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        refuse(fake, 422, foundry(NEW), when=sends(NEW))
        await asyncio.gather(*(answer(api, session=f"s{number}") for number in range(10)))
        await assert_conserved(tables, fake)


ON_YOUR_DATA = openai_error("Validation error at #/stream_options: Extra inputs are not permitted", code=400)
USAGE_REFUSED: dict[str, tuple[int, Any]] = {
    "openai/openai-python#2296": (400, ON_YOUR_DATA),
    "BerriAI/litellm#11696": (422, foundry("stream_options", "include_usage")),
    "older models": (400, openai_error("Unrecognized request argument supplied: stream_options")),
}
SOURCES = [{"type": "azure_search", "parameters": {}}]


class TestStreamOptions:
    @pytest.mark.parametrize("report", USAGE_REFUSED)
    async def test_usage_that_the_app_alone_requests_is_given_up_where_it_is_refused(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, report: str
    ) -> None:
        refuse(fake, *USAGE_REFUSED[report], when=sends("stream_options"))
        for _ in range(2):
            response = await answer(api)
            assert (response["message"]["content"], response["usage"]) == ("echo: hi", None)
        assert [sends("stream_options")(request) for request in fake.requests] == [True, False, False]
        assert await states(tables) == [State.UNACCOUNTED] * 2
        await assert_conserved(tables, fake)

    async def test_usage_that_comes_all_the_same_is_settled(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.raw(json.dumps(ON_YOUR_DATA).encode(), status=400, media_type="application/json", billed=False)
        fake.stream(text("hello"), end(), usage())
        assert (await answer(api))["usage"]["total_tokens"] == 12
        await assert_conserved(tables, fake)

    async def test_it_is_learned_for_each_kind_of_request(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        """On Your Data refuses it; the same deployment without data sources takes it."""
        refuse(fake, 400, ON_YOUR_DATA, when=lambda request: {"data_sources", "stream_options"} <= request.body.keys())
        for _ in range(2):
            for fields in ({"data_sources": SOURCES}, {}):
                assert (await openai_post(api, stream=True, **fields)).status_code == 200
        sent = [(sends("data_sources")(each), sends("stream_options")(each)) for each in fake.requests]
        assert sent == [(True, True), (True, False), (False, True), (True, False), (False, True)]
        await assert_conserved(tables, fake)

    @pytest.mark.parametrize("own", [{"include_usage": True}, {"include_obfuscation": False}])
    async def test_caller_who_sends_it_gets_the_refusal(
        self, api: httpx.AsyncClient, fake: RudeUpstream, own: JSON
    ) -> None:
        refuse(fake, 400, ON_YOUR_DATA, when=sends("stream_options"))
        assert (await openai_post(api, stream=True)).status_code == 200
        response = await openai_post(api, stream=True, stream_options=own)
        assert (response.status_code, response.json()) == (400, ON_YOUR_DATA)

    async def test_everything_that_a_deployment_refuses_at_once_is_learned_together(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        both = {"detail": [*foundry(NEW)["message"]["detail"], *foundry("stream_options", "x")["message"]["detail"]]}
        refuse(fake, 422, both, when=lambda request: sends(NEW)(request) or sends("stream_options")(request))
        await answer(api)
        assert len(fake.requests) == 2
        await assert_conserved(tables, fake)

    async def test_request_without_a_stream_is_unchanged(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        refuse(fake, 400, ON_YOUR_DATA, when=sends("stream_options"))
        await answer(api)
        assert (await openai_post(api)).json()["usage"]
        assert sorted(fake.requests[-1].body) == ["messages", "model"]


class TestTooLargeMaximum:
    TOO_LARGE = openai_error("max_tokens is too large. This model supports at most 400 completion tokens.", param=NEW)

    def too_large(self, request: Request) -> bool:
        return bool((request.body.get(NEW) or 0) > 400)

    async def test_composed_request_is_sent_again_with_the_maximum_of_the_model(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        refuse(fake, 400, self.TOO_LARGE, when=self.too_large)
        for maximum in (600, 500, 300):
            await answer(api, max_tokens=maximum)
        assert maxima(fake) == [{NEW: 600}, {NEW: 400}, {NEW: 400}, {NEW: 300}]
        await assert_conserved(tables, fake)

    async def test_forwarded_request_gets_the_refusal_and_later_ones_a_smaller_worst_case(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        async def worst_case() -> Decimal:
            fake.fault("truncated")  # its cost stays unknown
            await openai_post(api)
            return max(entry.call.worst_case or Decimal(0) for entry in await ledger(tables) if entry.call not in seen)

        seen: list[Call] = []
        before = await worst_case()
        refuse(fake, 400, self.TOO_LARGE, when=self.too_large)
        for _ in range(2):
            response = await openai_post(api, max_completion_tokens=600)
            assert (response.status_code, response.json()) == (400, self.TOO_LARGE)
        seen += [entry.call for entry in await ledger(tables)]
        assert before > 10 * await worst_case()
        assert len(fake.requests) == 4

    async def test_number_that_is_not_below_the_refused_one_teaches_nothing(
        self, api: httpx.AsyncClient, fake: RudeUpstream
    ) -> None:
        refuse(fake, 400, self.TOO_LARGE)
        assert (await send_message(api, max_tokens=300)).status_code == 400
        assert len(fake.requests) == 1
        assert services().max_output("chat") == services().settings.turns.max_output("chat")


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def efforts(fake: RudeUpstream) -> list[str | None]:
    return [request.body.get("reasoning_effort") for request in fake.requests]


def reasons_with_tools(request: Request) -> bool:
    """BerriAI/litellm#34569: this model has an effort of its own, so that only `none` is accepted."""
    return bool(request.body.get("tools")) and request.body.get("reasoning_effort") != "none"


class TestToolsAndReasoning:
    @pytest.mark.parametrize("default", [None, "low"])
    async def test_effort_that_no_caller_named_becomes_none_with_tools(
        self, serve: Serve, environ: dict[str, str], fake: RudeUpstream, tables: Tables, default: str | None
    ) -> None:
        refuse(fake, 400, TOOLS_REFUSED, when=reasons_with_tools)
        async with serve(environ | {"AZURE_OPENAI_REASONING_EFFORT": default or ""}) as api:
            for session in ("a", "b"):
                await answer(api, session=session, tools=TOOLS)
            await answer(api)
            assert (await openai_post(api, tools=TOOLS, stream=True)).status_code == 200
            assert (await openai_post(api)).status_code == 200
        assert efforts(fake) == [default, "none", "none", default, "none", None]
        await assert_conserved(tables, fake)

    async def test_forwarded_request_without_an_effort_learns_it_too(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        refuse(fake, 400, TOOLS_REFUSED, when=reasons_with_tools)
        for _ in range(2):
            assert (await openai_post(api, tools=TOOLS)).status_code == 200
        assert efforts(fake) == [None, "none", "none"]
        await assert_conserved(tables, fake)

    @pytest.mark.parametrize("learned", [False, True])
    async def test_effort_of_the_caller_is_refused_in_our_words(
        self, api: httpx.AsyncClient, fake: RudeUpstream, learned: bool
    ) -> None:
        refuse(fake, 400, TOOLS_REFUSED, when=reasons_with_tools)
        if learned:
            await answer(api, tools=TOOLS)
            fake.requests.clear()
        sent = await send_message(api, session="other", tools=TOOLS, reasoning_effort="high")
        forwarded = await openai_post(api, tools=TOOLS, reasoning_effort="high")
        for response in (sent, forwarded):
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", "reasoning_effort")
            assert "'chat'" in error["message"]
            assert "Set reasoning_effort to 'none'" in error["message"]
            assert "/" not in error["message"]
        assert efforts(fake) == ["high", "high"]

    async def test_model_that_refuses_none_as_well_is_called_without_an_effort(
        self, serve: Serve, environ: dict[str, str], fake: RudeUpstream, tables: Tables
    ) -> None:
        refuse(fake, 400, TOOLS_REFUSED, when=lambda request: {"tools", "reasoning_effort"} <= request.body.keys())
        async with serve(environ | {"AZURE_OPENAI_REASONING_EFFORT": "low"}) as api:
            for session in ("a", "b"):
                await answer(api, session=session, tools=TOOLS)
        assert efforts(fake) == ["low", "none", None, None]
        await assert_conserved(tables, fake)

    async def test_model_that_refuses_tools_whatever_the_effort_gets_two_requests(
        self, api: httpx.AsyncClient, fake: RudeUpstream
    ) -> None:
        refuse(fake, 400, TOOLS_REFUSED)
        assert (await send_message(api, tools=TOOLS)).status_code == 400
        assert efforts(fake) == [None, "none"]
