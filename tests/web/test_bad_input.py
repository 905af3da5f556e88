"""Invalid requests: the error explains the problem, nothing is stored, and the model is not called."""

import asyncio
import gzip
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
INVALID_SESSION_IDS = [
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
    "\uff41",  # fullwidth a
    "\N{ARABIC-INDIC DIGIT ONE}",
    "a\N{ZERO WIDTH SPACE}",
    "a" * 65,
    "a" * 10_000,
]


@pytest.fixture
async def no_side_effects(tables: Tables, fake: AzureOpenAI) -> AsyncIterator[None]:
    """Checks after the test that nothing is stored and that the model was not called."""
    yield
    assert [row async for row in all_rows(tables.sessions)] == []
    assert [row async for row in all_rows(tables.usage)] == []
    assert fake.requests == []


def error_of(response: httpx.Response, status: int = 400, code: str = "invalid_request") -> tuple[str, str | None]:
    """Checks the error response. Returns its message and its param."""
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


async def post_chat(api: httpx.AsyncClient, body: object) -> httpx.Response:
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
    b'{"message": "\xed\xa0\x80"}',  # a surrogate encoded as if it were UTF-8
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


@pytest.mark.usefixtures("no_side_effects")
class TestBodies:
    async def test_body_that_is_not_utf_8_json_is_rejected(
        self, api: httpx.AsyncClient, subtests: pytest.Subtests
    ) -> None:
        for body in NOT_JSON:
            with subtests.test(body=body[:60]):
                message, param = error_of(await post_chat(api, body))
                assert message.startswith("The request body is not valid JSON in UTF-8")
                assert param is None

    async def test_json_body_that_is_not_an_object_is_rejected(self, api: httpx.AsyncClient) -> None:
        for body in (b"[]", b'[{"message": "hi"}]', b'"hi"', b"5", b"null", b"true"):
            assert error_of(await post_chat(api, body)) == ("The request body must be a JSON object.", None)

    @ONE_APP
    @given(st.binary(max_size=60))
    async def test_random_bytes_return_400(self, api: httpx.AsyncClient, body: bytes) -> None:
        error_of(await post_chat(api, body))

    async def test_deeply_nested_field_returns_400(self, api: httpx.AsyncClient) -> None:
        for depth in (1, 100, 200, 240, *range(248, 258)):
            error_of(await post_chat(api, b'{"message": ' + nested(depth) + b"}"))


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=9), values, max_size=3),
    max_leaves=6,
)
VALUES_BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int": st.integers(-(10**20), 10**20),
    "float": st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
    | st.just(1.0),
    "str": st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    "list": st.lists(ANY_JSON, max_size=2),
    "dict": st.dictionaries(st.text(max_size=9), ANY_JSON, max_size=2),
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
    type_name = draw(st.sampled_from(sorted(VALUES_BY_TYPE.keys() - FIELDS[field])))
    return field, draw(VALUES_BY_TYPE[type_name])


INVALID_FIELDS: list[tuple[dict[str, Any], str | None, str]] = [
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


@pytest.mark.usefixtures("no_side_effects")
class TestFields:
    @settings(ONE_APP, max_examples=150)
    @given(wrong_fields())
    async def test_error_names_the_field_of_the_wrong_type(
        self, api: httpx.AsyncClient, wrong_field: tuple[str, Any]
    ) -> None:
        field, value = wrong_field
        message, param = error_of(await post_chat(api, {"message": "hi", field: value}))
        assert param == field
        assert message.startswith(f"{field} should be ")

    @ONE_APP
    @given(st.dictionaries(st.sampled_from(sorted(FIELDS)), ANY_JSON, min_size=1, max_size=3))
    @example({"message": None})
    @example({"stream": None})
    async def test_random_field_values_return_400(self, api: httpx.AsyncClient, fields: dict[str, Any]) -> None:
        body = {"message": 5} | fields if fields.get("message") and not fields.get("tool_results") else fields
        error_of(await post_chat(api, body | {"session_id": "a b"}))

    async def test_error_names_the_field_and_the_problem(
        self, api: httpx.AsyncClient, subtests: pytest.Subtests
    ) -> None:
        for body, field, expected in INVALID_FIELDS:
            with subtests.test(body=str(body)[:80]):
                message, param = error_of(await post_chat(api, body))
                assert param == field
                assert expected in message
                assert field is None or field in message or "No tool call" in message

    async def test_image_url_must_be_http_or_data(self, api: httpx.AsyncClient) -> None:
        for url in ("ftp://host/a.png", "javascript:alert(1)", "file:///etc/passwd", "data:text/html,x", "a.png", ""):
            message, param = error_of(await send_message(api, [{"type": "image_url", "image_url": {"url": url}}]))
            assert param == "message[0].image_url.url"
            assert "should begin with https://, http:// or data:image/" in message

    async def test_error_for_unknown_deployment_lists_the_deployments(
        self, serve: Serve, environ: dict[str, str]
    ) -> None:
        async with serve(environ | {"AZURE_OPENAI_DEPLOYMENTS": "small=gpt-4.1-mini, large"}) as api:
            message, param = error_of(await send_message(api, deployment="huge"))
        assert param == "deployment"
        assert "'huge'" in message
        assert "Choose one of: chat, large, small." in message


def assert_invalid_session_id(response: httpx.Response) -> None:
    message, param = error_of(response)
    assert param == "session_id"
    assert "1 to 64 letters, digits, dots, underscores or hyphens" in message


@pytest.mark.usefixtures("no_side_effects")
class TestSessionIds:
    async def test_invalid_session_id_in_body_is_rejected(
        self, api: httpx.AsyncClient, subtests: pytest.Subtests
    ) -> None:
        for session in INVALID_SESSION_IDS:
            with subtests.test(session=session[:70]):
                assert_invalid_session_id(await send_message(api, session=session))

    @pytest.mark.parametrize("text", [f"conv_{'0a' * 16}", f"resp_{'0a' * 16}0000001f"])
    async def test_id_of_a_conversation_or_response_is_rejected_with_that_of_its_session(
        self, api: httpx.AsyncClient, text: str
    ) -> None:
        branch = {"message": "hi", "branch_from": {"session_id": text, "turn": 1}}
        for response, name in (
            (await send_message(api, session=text), "session_id"),
            (await api.get(f"/api/sessions/{text}"), "session_id"),
            (await api.post("/api/chat", json=branch), "branch_from.session_id"),
        ):
            message, param = error_of(response)
            assert param == name
            assert message == f"{name} should be the ID of a session, which is {'0a' * 16} for {text}."

    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    @pytest.mark.parametrize("suffix", ["", "/messages"])
    async def test_invalid_session_id_in_path_is_rejected(
        self, api: httpx.AsyncClient, subtests: pytest.Subtests, method: str, suffix: str
    ) -> None:
        for session in INVALID_SESSION_IDS:
            with subtests.test(session=session[:70]):
                response = await api.request(method, f"/api/sessions/{quote(session, safe='')}{suffix}")
                if session in ("", ".", ".."):  # the client or the platform's router changes this path
                    assert response.status_code in (400, 401, 404, 405)  # 401: of the list of sessions
                else:
                    assert_invalid_session_id(response)

    @ONE_APP
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=70))
    async def test_random_session_id_in_path_is_rejected_unless_valid(
        self, api: httpx.AsyncClient, session: str
    ) -> None:
        response = await api.get(f"/api/sessions/{quote(session, safe='')}")
        if re.fullmatch(SESSION_ID, session):
            error_of(response, 404, "session_not_found")
        elif session not in (".", ".."):
            assert error_of(response)[1] == "session_id"


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


@pytest.mark.usefixtures("no_side_effects")
class TestContentTypes:
    async def test_content_types_other_than_json_are_rejected_with_415(self, api: httpx.AsyncClient) -> None:
        for content_type in NOT_JSON_TYPES:
            headers = {} if content_type is None else {"content-type": content_type}
            response = await api.post("/api/chat", content=b'{"message": "hi"}', headers=headers)
            message, _ = error_of(response, 415, "unsupported_media_type")
            assert "Content-Type: application/json" in message

    async def test_compressed_body_is_rejected_with_415(self, api: httpx.AsyncClient) -> None:
        body = gzip.compress(b'{"message": "hi"}')
        for codings in (["gzip"], ["GZIP"], ["br"], ["unknown"], ["identity, gzip"], ["identity", "gzip"]):
            headers = [("content-type", "application/json"), *(("content-encoding", coding) for coding in codings)]
            response = await api.post("/api/chat", content=body, headers=headers)
            message, param = error_of(response, 415, "unsupported_media_type")
            assert "without the header Content-Encoding" in message
            assert param == "Content-Encoding"


async def test_content_encoding_identity_is_accepted(api: httpx.AsyncClient) -> None:
    for coding in ("identity", "Identity", "", "identity, identity"):
        headers = JSON | {"content-encoding": coding}
        assert (await api.post("/api/chat", content=b'{"message": "hi"}', headers=headers)).status_code == 200


async def chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 60_000):
        yield b" " * min(60_000, size - start)


@pytest.mark.usefixtures("no_side_effects")
class TestSizes:
    @pytest.mark.parametrize("size", [LIMIT + 1, 1_000_000, 20_000_000])
    @pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
    async def test_too_large_body_returns_413(self, api: httpx.AsyncClient, size: int, chunked: bool) -> None:
        content = chunks(size) if chunked else b" " * size
        response = await api.post("/api/chat", content=content, headers=JSON)
        message, _ = error_of(response, 413, "message_too_large")
        assert f"larger than {LIMIT} bytes" in message

    async def test_413_reaches_a_client_that_sends_the_whole_body_before_reading(self, api: httpx.AsyncClient) -> None:
        size = 3_000_000
        reader, writer = await asyncio.open_connection("127.0.0.1", api.base_url.port)
        head = f"POST /api/chat?code={FUNCTION_KEY} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode())
        for _ in range(size // 100_000):
            writer.write(b" " * 100_000)
            await writer.drain()
            await asyncio.sleep(0.005)  # like a network: the response may come first
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()

    async def test_413_for_inline_image_suggests_a_link(self, api: httpx.AsyncClient) -> None:
        large = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * LIMIT}"}}
        message, _ = error_of(await send_message(api, [large]), 413, "message_too_large")
        assert "images can be links" in message

    @pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
    async def test_body_of_exactly_the_limit_is_read(self, api: httpx.AsyncClient, chunked: bool) -> None:
        content = chunks(LIMIT) if chunked else b" " * LIMIT
        message, _ = error_of(await api.post("/api/chat", content=content, headers=JSON))
        assert "not valid JSON" in message

    async def test_max_message_bytes_sets_the_limit(self, serve: Serve, environ: dict[str, str]) -> None:
        async with serve(environ | {"MAX_MESSAGE_BYTES": "1024"}) as api:
            message, _ = error_of(await send_message(api, "x" * 1_024), 413, "message_too_large")
        assert "1024 bytes" in message


@pytest.mark.usefixtures("no_side_effects")
async def test_invalid_page_size_is_rejected(api: httpx.AsyncClient) -> None:
    for limit in ("0", "-1", "", "1.5", "ten", "1e1", "%C2%B2", "+1", "%201", "9" * 11, "101", "null"):
        message, param = error_of(await api.get(f"/api/sessions/s/messages?limit={limit}"))
        assert (message, param) == ("limit must be a whole number from 1 to 100.", "limit")


class TestExistingSession:
    """An invalid request does not change an existing session."""

    async def test_invalid_turn_number_is_rejected(self, api: httpx.AsyncClient) -> None:
        await answer(api)
        for before in ("0", "-1", "", "1.5", "x", "9" * 11, str(10**9 + 1)):
            assert error_of(await api.get(f"/api/sessions/s/messages?before={before}"))[1] == "before"

    async def test_rejected_message_does_not_change_the_session(
        self, api: httpx.AsyncClient, tables: Tables, fake: AzureOpenAI, subtests: pytest.Subtests
    ) -> None:
        await answer(api)
        rows = [row async for row in all_rows(tables.sessions)]
        for fields in (
            {"message": 5},
            {"message": "hi", "system": "another"},
            {"message": "hi", "deployment": "another"},
            {"message": "hi", "max_tokens": 8_001},
            {"tool_results": [{"tool_call_id": "a", "content": "b"}]},
        ):
            with subtests.test(fields=fields):
                error_of(await post_chat(api, fields | {"session_id": "s"}))
                assert [row async for row in all_rows(tables.sessions)] == rows
                assert len(fake.requests) == 1

    async def test_deeply_nested_tool_returns_200_or_400(self, api: httpx.AsyncClient) -> None:
        statuses = set()
        for depth in (100, 200, 240, *range(245, 256)):
            parameters = b'{"a": ' * depth + b"1" + b"}" * depth
            tool = b'{"type": "function", "function": {"name": "f", "parameters": ' + parameters + b"}}"
            response = await post_chat(api, b'{"message": "hi", "tools": [' + tool + b"]}")
            statuses.add(response.status_code)
            if response.status_code != 200:
                error_of(response)
        assert statuses == {200, 400}
