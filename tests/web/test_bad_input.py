"""Whatever is sent, the answer says what is wrong with it, and nothing is stored, asked or billed."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import FUNCTION_KEY, Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, send_message
from tests.support.conservation import all_rows

JSON = {"content-type": "application/json"}
ONE_APP = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
LIMIT = 262_144
URL = {"url": "https://example.com/a.png"}
SESSION_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
BAD_IDS = [
    "",
    ".",
    "..",
    "../head",
    "a/b",
    "a\\b",
    "a'b",
    "x' or PartitionKey ne 'x",
    'a"b',
    "a b",
    "a\n",
    "a\x00",
    "a\x7f",
    "\ta",
    "-a",
    "_a",
    "~erasing",
    "a#b",
    "a?b",
    "a%2fb",
    "é",
    "\N{FULLWIDTH LATIN SMALL LETTER A}",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "a\N{ZERO WIDTH SPACE}",
    "a" * 65,
    "a" * 10_000,
]


@pytest.fixture
async def untouched(tables: Tables, fake: AzureOpenAI) -> AsyncIterator[None]:
    """Afterwards nothing is stored and the model was asked nothing."""
    yield
    assert [row async for row in all_rows(tables.sessions)] == []
    assert [row async for row in all_rows(tables.usage)] == []
    assert fake.requests == []


def refusal(response: httpx.Response, status: int = 400, code: str = "invalid_request") -> tuple[str, str | None]:
    """The message and the field of a proper refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "param"}
    assert body["error"]["code"] == code
    message = body["error"]["message"]
    assert re.fullmatch(r"\S.*[.]", message, re.DOTALL), message
    assert not re.search(r"Traceback|pydantic|Input should|tagged|constrained|ctx", message), message
    return message, body["error"]["param"]


async def post(api: httpx.AsyncClient, body: object) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await api.post("/api/chat", content=content, headers=JSON)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"hello",
    b"{'message': 'hi'}",
    b'{"message": "hi"',
    b'{"message": "hi"} x',
    b'{"message": "hi",}',
    b'{"message": "\xff"}',
    b'{"message": "\xed\xa0\x80"}',  # a surrogate, in what looks like UTF-8
    b'{"message": "\\ud83d"}',
    b'{"message": "\\ude00\\ud83d"}',
    b'{"\\ud83d": 1}',
    b'{"message": "a\x00b"}',
    b'{"message": "hi", "temperature": NaN}',
    b'{"message": "hi", "temperature": -Infinity}',
    '{"message": "hi"}'.encode("utf-16"),
    b'\xef\xbb\xbf{"message": "hi"}',
    nested(300),
    nested(2_000),
    nested(100_000),
    b'{"message": "hi", "tools": [{"a": ' + nested(300) + b"}]}",
    b'{"message": "hi", "tools": [{"a": ' + nested(2_000) + b"}]}",
]


@pytest.mark.usefixtures("untouched")
class TestBodies:
    async def test_what_is_not_json_in_utf_8_is_said_to_be_so(
        self, api: httpx.AsyncClient, subtests: pytest.Subtests
    ) -> None:
        for body in NOT_JSON:
            with subtests.test(body=body[:60]):
                message, param = refusal(await post(api, body))
                assert message.startswith("The body is not valid JSON in UTF-8")
                assert param is None

    async def test_json_that_is_no_object_is_said_to_be_so(self, api: httpx.AsyncClient) -> None:
        for body in (b"[]", b'[{"message": "hi"}]', b'"hi"', b"5", b"null", b"true"):
            assert refusal(await post(api, body)) == ("The body is not a JSON object.", None)

    @ONE_APP
    @given(st.binary(max_size=60))
    async def test_no_bytes_upset_it(self, api: httpx.AsyncClient, body: bytes) -> None:
        refusal(await post(api, body))

    async def test_however_deep_a_field_nests_its_type_is_said_to_be_wrong(self, api: httpx.AsyncClient) -> None:
        for depth in (1, 100, 200, 240, *range(248, 258)):
            refusal(await post(api, b'{"message": ' + nested(depth) + b"}"))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
OF_KIND: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int": st.integers(-(10**20), 10**20),
    "float": st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
    | st.just(1.0),
    "str": st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    "list": st.lists(ANYTHING, max_size=2),
    "dict": st.dictionaries(st.text(max_size=9), ANYTHING, max_size=2),
}
FIELDS = {
    "message": {"str", "list"},
    "tool_results": {"list"},
    "session_id": {"str"},
    "system": {"str"},
    "deployment": {"str"},
    "stream": {"bool"},
    "max_tokens": {"int"},
    "temperature": {"int", "float"},
    "top_p": {"int", "float"},
    "stop": {"str", "list"},
    "seed": {"int"},
    "response_format": {"dict"},
    "tools": {"list"},
    "tool_choice": {"str", "dict"},
    "logprobs": {"bool"},
    "top_logprobs": {"int"},
    "reasoning_effort": {"str"},
}


@st.composite
def wrong_fields(draw: st.DrawFn) -> tuple[str, Any]:
    field = draw(st.sampled_from(sorted(FIELDS)))
    kind = draw(st.sampled_from(sorted(OF_KIND.keys() - FIELDS[field])))
    return field, draw(OF_KIND[kind])


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"message": 5}, "message", "should be a string or a list of content parts"),
    ({"message": {"text": "hi"}}, "message", "should be a string or a list of content parts"),
    ({"message": ""}, "message", "should not be empty"),
    ({"message": []}, "message", "should not be empty"),
    ({"message": ["hi"]}, "message[0]", "should be an object"),
    ({"message": [{"text": "hi"}]}, "message[0]", "should have the type 'text' or 'image_url'"),
    ({"message": [{"type": "audio"}]}, "message[0]", "should have the type 'text' or 'image_url'"),
    ({"message": [{"type": "text"}]}, "message[0].text", "is missing"),
    ({"message": [{"type": "text", "text": ""}]}, "message[0].text", "should not be empty"),
    ({"message": [{"type": "text", "text": "a", "x": 1}]}, "message[0].x", "no field 'message[0].x'"),
    ({"message": [{"type": "image_url", "image_url": "u"}]}, "message[0].image_url", "should be an object"),
    ({"message": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, "message[1].image_url", "is missing"),
    (
        {"message": [{"type": "image_url", "image_url": {**URL, "detail": "max"}}]},
        "message[0].image_url.detail",
        "should be 'auto', 'low' or 'high'",
    ),
    ({"tool_results": []}, "tool_results", "should not be empty"),
    ({"tool_results": [{"tool_call_id": "a"}]}, "tool_results[0].content", "is missing"),
    ({"tool_results": [{"tool_call_id": 1, "content": ""}]}, "tool_results[0].tool_call_id", "a string"),
    ({"tool_results": [{"tool_call_id": "a", "content": "b"}]}, "tool_results", "No tool call is waiting"),
    ({}, None, "Give either message or tool_results"),
    ({"message": None}, None, "Give either message or tool_results"),
    ({"message": "a", "tool_results": [{"tool_call_id": "a", "content": "b"}]}, None, "Give either message or"),
    ({"message": "a", "temprature": 1}, "temprature", "no field 'temprature'"),
    ({"message": "a", "n": 2}, "n", "no field 'n'"),
    ({"message": "a", "messages": []}, "messages", "no field 'messages'"),
    ({"message": "a", "x" * 5_000: 1}, "x" * 100, "no field 'xxx"),
    ({"message": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
    ({"message": "a", "max_tokens": -1}, "max_tokens", "at least 1"),
    ({"message": "a", "max_tokens": 8_001}, "max_tokens", "at most 8000"),
    ({"message": "a", "max_tokens": 2**63}, "max_tokens", "at most 8000"),
    ({"message": "a", "max_tokens": 10**30}, "max_tokens", "should be a whole number"),
    ({"message": "a", "temperature": 2.01}, "temperature", "at most 2"),
    ({"message": "a", "temperature": -0.01}, "temperature", "at least 0"),
    ({"message": "a", "top_p": 1.01}, "top_p", "at most 1"),
    ({"message": "a", "top_logprobs": 21}, "top_logprobs", "at most 20"),
    ({"message": "a", "seed": 2**63}, "seed", "less than 9223372036854775808"),
    ({"message": "a", "stop": []}, "stop", "should not be empty"),
    ({"message": "a", "stop": ["a"] * 5}, "stop", "at most 4"),
    ({"message": "a", "stop": [1]}, "stop[0]", "should be a string"),
    ({"message": "a", "tools": []}, "tools", "should not be empty"),
    ({"message": "a", "tools": [[]]}, "tools[0]", "should be an object"),
    ({"message": "a", "reasoning_effort": "max"}, "reasoning_effort", "'none', 'minimal', 'low'"),
]


@pytest.mark.usefixtures("untouched")
class TestFields:
    @settings(ONE_APP, max_examples=150)
    @given(wrong_fields())
    async def test_a_value_of_a_wrong_type_is_told_by_its_field(
        self, api: httpx.AsyncClient, wrong: tuple[str, Any]
    ) -> None:
        field, value = wrong
        message, param = refusal(await post(api, {"message": "hi", field: value}))
        assert param == field
        assert message.startswith(f"{field} should be ")

    @ONE_APP
    @given(st.dictionaries(st.sampled_from(sorted(FIELDS)), ANYTHING, min_size=1, max_size=3))
    @example({"message": None})
    @example({"stream": None})
    async def test_no_values_upset_it(self, api: httpx.AsyncClient, fields: dict[str, Any]) -> None:
        body = {"message": 5} | fields if fields.get("message") and not fields.get("tool_results") else fields
        refusal(await post(api, body | {"session_id": "a b"}))

    async def test_what_is_wrong_is_named_and_said(self, api: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
        for body, param, said in WRONG:
            with subtests.test(body=str(body)[:80]):
                message, named = refusal(await post(api, body))
                assert named == param
                assert said in message
                assert param is None or param in message or "No tool call" in message

    async def test_an_image_is_an_http_or_data_url(self, api: httpx.AsyncClient) -> None:
        for url in ("ftp://host/a.png", "javascript:alert(1)", "file:///etc/passwd", "data:text/html,x", "a.png", ""):
            message, param = refusal(await send_message(api, [{"type": "image_url", "image_url": {"url": url}}]))
            assert param == "message[0].image_url.url"
            assert "should begin with https://, http:// or data:image/" in message

    async def test_an_unknown_deployment_is_told_which_there_are(self, serve: Serve, environ: dict[str, str]) -> None:
        async with serve(environ | {"AZURE_OPENAI_DEPLOYMENTS": "small=gpt-4.1-mini, large"}) as api:
            message, param = refusal(await send_message(api, deployment="huge"))
        assert param == "deployment"
        assert "'huge'" in message
        assert "Choose one of: chat, large, small." in message


def assert_no_id(response: httpx.Response) -> None:
    message, param = refusal(response)
    assert param == "session_id"
    assert "1 to 64 letters, digits, dots, underscores or hyphens" in message


@pytest.mark.usefixtures("untouched")
class TestSessionIds:
    async def test_a_bad_one_in_the_body_is_refused(self, api: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
        for session in BAD_IDS:
            with subtests.test(session=session[:70]):
                assert_no_id(await send_message(api, session=session))

    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    @pytest.mark.parametrize("rest", ["", "/messages"])
    async def test_a_bad_one_in_a_path_is_refused(
        self, api: httpx.AsyncClient, subtests: pytest.Subtests, method: str, rest: str
    ) -> None:
        for session in BAD_IDS:
            with subtests.test(session=session[:70]):
                response = await api.request(method, f"/api/sessions/{quote(session, safe='')}{rest}")
                if session in ("", ".", ".."):  # to the client, or the platform's router, that is no such path
                    assert response.status_code in (400, 404)
                else:
                    assert_no_id(response)

    @ONE_APP
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=70))
    async def test_no_text_that_is_no_id_passes_for_one(self, api: httpx.AsyncClient, session: str) -> None:
        response = await api.get(f"/api/sessions/{quote(session, safe='')}")
        if re.fullmatch(SESSION_ID, session):
            refusal(response, 404, "session_not_found")
        elif session not in (".", ".."):
            assert refusal(response)[1] == "session_id"


NOT_JSON_TYPES = [
    None,
    "",
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json-seq",
    "text/plain; application/json",
]


@pytest.mark.usefixtures("untouched")
class TestContentTypes:
    async def test_what_another_sites_page_could_send_is_refused(self, api: httpx.AsyncClient) -> None:
        for content_type in NOT_JSON_TYPES:
            headers = {} if content_type is None else {"content-type": content_type}
            response = await api.post("/api/chat", content=b'{"message": "hi"}', headers=headers)
            message, _ = refusal(response, 415, "unsupported_media_type")
            assert "Content-Type: application/json" in message


async def chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 60_000):
        yield b" " * min(60_000, size - start)


@pytest.mark.usefixtures("untouched")
class TestSizes:
    @pytest.mark.parametrize("size", [LIMIT + 1, 1_000_000, 20_000_000])
    @pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
    async def test_a_body_that_is_too_large_is_told_so_and_the_caller_reads_it(
        self, api: httpx.AsyncClient, size: int, chunked: bool
    ) -> None:
        content = chunks(size) if chunked else b" " * size
        response = await api.post("/api/chat", content=content, headers=JSON)
        message, _ = refusal(response, 413, "message_too_large")
        assert f"larger than {LIMIT} bytes" in message

    async def test_a_caller_that_sends_all_before_it_reads_is_not_cut_off(self, api: httpx.AsyncClient) -> None:
        size = 3_000_000
        reader, writer = await asyncio.open_connection("127.0.0.1", api.base_url.port)
        head = f"POST /api/chat?code={FUNCTION_KEY} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode())
        for _ in range(size // 100_000):
            writer.write(b" " * 100_000)
            await writer.drain()
            await asyncio.sleep(0.005)  # as a network would: the answer could be there before the end is sent
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()

    async def test_an_image_that_is_too_large_could_be_a_link(self, api: httpx.AsyncClient) -> None:
        large = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * LIMIT}"}}
        message, _ = refusal(await send_message(api, [large]), 413, "message_too_large")
        assert "an image can be sent as a link" in message

    @pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
    async def test_a_body_of_just_the_limit_is_read(self, api: httpx.AsyncClient, chunked: bool) -> None:
        content = chunks(LIMIT) if chunked else b" " * LIMIT
        message, _ = refusal(await api.post("/api/chat", content=content, headers=JSON))
        assert "not valid JSON" in message

    async def test_the_limit_is_a_setting(self, serve: Serve, environ: dict[str, str]) -> None:
        async with serve(environ | {"MAX_MESSAGE_BYTES": "1024"}) as api:
            message, _ = refusal(await send_message(api, "x" * 1_024), 413, "message_too_large")
        assert "1024 bytes" in message


@pytest.mark.usefixtures("untouched")
async def test_a_page_size_out_of_range_is_refused(api: httpx.AsyncClient) -> None:
    for limit in ("0", "-1", "", "1.5", "ten", "1e1", "%C2%B2", "+1", "%201", "9" * 11, "101", "null"):
        message, param = refusal(await api.get(f"/api/sessions/s/messages?limit={limit}"))
        assert (message, param) == ("limit is not a whole number from 1 to 100.", "limit")


class TestOnASession:
    """What is refused leaves a session as it was."""

    async def test_a_turn_number_out_of_range_is_refused(self, api: httpx.AsyncClient) -> None:
        await answer(api)
        for before in ("0", "-1", "", "1.5", "x", "9" * 11, str(10**9 + 1)):
            assert refusal(await api.get(f"/api/sessions/s/messages?before={before}"))[1] == "before"

    async def test_a_refused_post_changes_nothing(
        self, api: httpx.AsyncClient, tables: Tables, fake: AzureOpenAI, subtests: pytest.Subtests
    ) -> None:
        await answer(api)
        before = [row async for row in all_rows(tables.sessions)]
        for fields in (
            {"message": 5},
            {"message": "hi", "system": "another"},
            {"message": "hi", "deployment": "another"},
            {"message": "hi", "max_tokens": 8_001},
            {"tool_results": [{"tool_call_id": "a", "content": "b"}]},
        ):
            with subtests.test(fields=fields):
                refusal(await post(api, fields | {"session_id": "s"}))
                assert [row async for row in all_rows(tables.sessions)] == before
                assert len(fake.requests) == 1

    async def test_what_nests_deeply_is_asked_or_refused(self, api: httpx.AsyncClient) -> None:
        statuses = set()
        for depth in (100, 200, 240, *range(245, 256)):
            parameters = b'{"a": ' * depth + b"1" + b"}" * depth
            tool = b'{"type": "function", "function": {"name": "f", "parameters": ' + parameters + b"}}"
            response = await post(api, b'{"message": "hi", "tools": [' + tool + b"]}")
            statuses.add(response.status_code)
            if response.status_code != 200:
                refusal(response)
        assert statuses == {200, 400}
