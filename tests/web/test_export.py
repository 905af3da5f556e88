"""GET api/sessions/{id}/export: a whole conversation as JSON or Markdown."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest
from markdown_it import MarkdownIt

from local.keys import line
from shared.domain.conversation import Turn
from shared.storage import session_rows as rows
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, exact, fill, get_json, send_message, stored, streaming
from tests.support.faults import stall_request
from tests.support.proxy import Match, TcpProxy

KEY = "a-client-key-of-ann"
EXPORT = "/api/sessions/s/export"


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CLIENT_KEYS": line("ann", KEY)}


async def exported(api: httpx.AsyncClient, kind: str = "json") -> Any:
    response = await api.get(EXPORT, params={"format": kind})
    assert response.status_code == 200, response.text
    return exact(response.text) if kind == "json" else response.text


async def test_json_export_is_the_session_and_its_history(api: httpx.AsyncClient, tables: Tables) -> None:
    for message in ("one", "two"):
        await answer(api, message)

    whole = await exported(api)

    history = (await get_json(api, "/api/sessions/s/messages"))["turns"]
    assert whole == {"session": await get_json(api, "/api/sessions/s"), "conversation": history[::-1]}


async def test_export_is_a_file_named_by_the_reference(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    reference = (await stored(tables))[0].reference
    for kind, ending, media_type in (("json", "json", "application/json"), ("markdown", "md", "text/markdown")):
        response = await api.get(EXPORT, params={"format": kind})

        assert response.headers["content-disposition"] == f'attachment; filename="{reference}.{ending}"'
        assert response.headers["content-type"].split(";")[0] == media_type
        assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("kind", ["json", "markdown"])
async def test_1000_turns_are_exported_in_order_a_block_at_a_time(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables, kind: str
) -> None:
    await fill(tables, 1_000)
    storage.seen.clear()

    if kind == "json":
        whole = await exported(api)
        numbers = [turn["turn"] for turn in whole["conversation"]]
        texts = [message["content"] for turn in whole["conversation"] for message in turn["messages"]]
    else:
        texts = re.findall(r"^> (.*)$", await exported(api, "markdown"), re.MULTILINE)[1:]  # the system prompt is first
        numbers = list(range(1, 1_001))

    assert numbers == list(range(1, 1_001))
    assert texts == [f"{kind} {number}" for number in numbers for kind in ("message", "answer")]
    pages = [request for request in storage.seen if Match("GET", "turn-").matches(request)]
    assert len(pages) == 50
    assert all("top=20" in page.path for page in pages)


@pytest.mark.parametrize("kind", ["json", "markdown"])
async def test_export_is_sent_while_it_is_read(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables, kind: str
) -> None:
    await fill(tables, 400)
    async with api.stream("GET", EXPORT, params={"format": kind}) as response:
        await anext(response.aiter_bytes())
        assert storage.count(Match("GET", "turn-")) < 20


async def test_export_ends_if_another_session_takes_the_id_meanwhile(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables
) -> None:
    await fill(tables, 40)
    with stall_request(storage, Match("GET", "turn-"), nth=2) as stalled:  # the second block
        exporting = asyncio.create_task(api.get(EXPORT))
        await stalled.until_reached()
        assert (await api.delete("/api/sessions/s")).status_code == 204
        await fill(tables, 40, content="of another conversation")
    with pytest.raises(httpx.RemoteProtocolError):
        await exporting


@pytest.mark.parametrize("kind", ["json", "markdown"])
async def test_cleared_turns_are_left_out(api: httpx.AsyncClient, kind: str) -> None:
    await answer(api, "forgotten")
    assert (await api.delete("/api/sessions/s/messages")).status_code == 204
    await answer(api, "kept")

    text = (await api.get(EXPORT, params={"format": kind})).text

    assert "forgotten" not in text
    assert "kept" in text
    if kind == "json":
        assert [turn["turn"] for turn in exact(text)["conversation"]] == [2]


@pytest.mark.parametrize("kind", ["json", "markdown"])
async def test_cleared_session_exports_an_empty_conversation(api: httpx.AsyncClient, kind: str) -> None:
    await answer(api, "forgotten")
    assert (await api.delete("/api/sessions/s/messages")).status_code == 204

    whole = await exported(api, kind)

    assert whole["conversation"] == [] if kind == "json" else "## User" not in whole


# Markdown


def headings(markdown: str) -> list[str]:
    """The headings of the document itself, as a Markdown parser reads it, without those in quotations."""
    tokens = MarkdownIt("commonmark").parse(markdown)
    return [
        tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open" and token.level == 0
    ]


OPEN = {
    "an open fence": "Look:\n```python\nprint(1)",
    "a longer fence": "````\n```\nnot the end",
    "tildes": "~~~\nopen",
    "a fence in a list": "- one\n  ```\n  open",
    "a heading": "## User\n\nNo message.",
    "an open quotation": "> > deep",
    "an HTML block": "<!-- open\n\n<pre>\n<script>",
    "carriage returns": "one\r## User\r\n## Assistant\r",
    "indented": "    ## code\n\t## code",
    "a line below": "title\n---\n===",
}


@pytest.mark.parametrize("name", OPEN)
async def test_message_can_not_change_the_structure_of_the_markdown(
    api: httpx.AsyncClient, fake: AzureOpenAI, name: str
) -> None:
    fake.reply(OPEN[name])
    await answer(api, OPEN[name], system=OPEN[name])
    await answer(api, "next")

    text = await exported(api, "markdown")

    titles = ["System", "User", "Assistant", "User", "Assistant"]
    assert headings(text)[1:] == titles
    assert headings(text)[0].startswith("Conversation of ")


async def test_markdown_keeps_code_and_unicode(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("```python\nif x:\n    print('é')\n```\n\n日本語 👩‍👩‍👧 \u2028 end")
    await answer(api, "Zoë 日本")

    text = await exported(api, "markdown")

    assert "> Zoë 日本\n" in text
    assert "> ```python\n> if x:\n>     print('é')\n> ```\n>\n> 日本語 👩‍👩‍👧 \u2028 end\n" in text


async def test_markdown_shows_tool_calls_and_results(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    arguments = '{"code": "```\\n````"}'
    fake.reply("", tool_calls=(("call-1", "run", arguments),))
    tools = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}]
    await answer(api, "go", tools=tools)
    results = [{"tool_call_id": "call-1", "content": "```\nopen"}]
    assert (await send_message(api, None, tool_results=results, tools=tools)).status_code == 200

    text = await exported(api, "markdown")

    assert headings(text)[2:] == ["User", "Assistant", "Tool result", "Assistant"]
    assert f"> Calls `run`:\n>\n> `````json\n> {arguments}\n> `````\n" in text


async def test_markdown_links_images_and_leaves_out_other_parts(api: httpx.AsyncClient) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a(1) b.png?x=1&y=%20"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    await answer(api, parts)

    text = await exported(api, "markdown")

    assert "> What is this?\n>\n> ![image](https://example.com/a%281%29%20b.png?x=1&y=%20)\n" in text
    assert "> (A part of type image_url is left out.)\n" in text
    assert "base64" not in text
    assert (await exported(api))["conversation"][0]["messages"][0]["content"] == parts


async def with_message(api: httpx.AsyncClient, tables: Tables, message: dict[str, Any]) -> str:
    """The Markdown of a turn that has this message in place of its answer."""
    await answer(api)
    _, [turn] = await stored(tables)
    changed = replace(turn, messages=(turn.messages[0], message))
    await tables.sessions.put(rows.from_turn("s", changed), turn.etag)
    return str(await exported(api, "markdown"))


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"tool_calls": [{"type": "custom", "custom": {"name": "run", "input": "print(1)"}}]}, "> print(1)"),
        ({"function_call": {"name": "look", "arguments": '{"a":1}'}}, '> {"a":1}'),
        ({"content": "So far", "refusal": "I may not."}, "> So far\n>\n> I may not."),
    ],
    ids=["custom tool", "function call", "refusal after content"],
)
async def test_markdown_shows_all_that_an_answer_can_have(
    api: httpx.AsyncClient, tables: Tables, fields: dict[str, Any], shown: str
) -> None:
    assert shown in await with_message(api, tables, {"role": "assistant", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"content": [{"type": "image_url", "image_url": "https://a.example/cat.png"}, {"type": "image_url"}, {}]},
        {"content": [{"type": "image_url", "image_url": {"url": 7}}, {"type": "text", "text": 7}]},
        {"content": "x", "tool_calls": 5},
        {"content": "x", "tool_calls": [5, {"function": "look"}, {"custom": []}], "function_call": "look"},
        {"content": None, "refusal": ["x"]},
    ],
)
async def test_fields_of_any_type_do_not_break_the_markdown(
    api: httpx.AsyncClient, tables: Tables, fields: dict[str, Any]
) -> None:
    """A caller of openai/* chooses them, and a turn that the service refused keeps them."""
    assert "## User" in await with_message(api, tables, {"role": "user", **fields})


async def test_stopped_and_failed_turns_are_marked(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("one two three")
    with fake.hold(after=1):
        async with streaming(api, "count") as stream:
            await stream.next()
            await stream.next()
            assert (await api.post("/api/sessions/s/stop")).json()["state"] == "stopped"
    fake.fault("content_filter")
    assert (await send_message(api, "forbidden")).status_code == 400
    await answer(api, "last")

    text = await exported(api, "markdown")

    assert "> one\n\n*(stopped)*\n" in text
    assert "> forbidden\n\n*(content_filter)*\n" in text
    assert text.count("*(") == 2
    assert [turn["finish_reason"] for turn in (await exported(api))["conversation"]] == [
        "stopped",
        "content_filter",
        "stop",
    ]


async def test_turn_that_runs_is_marked_as_open(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with fake.hold():
        async with streaming(api, "wait") as stream:
            await stream.next()

            assert "> wait\n\n*(open)*\n" in await exported(api, "markdown")


# Refusals


async def test_export_of_another_callers_session_is_404(api: httpx.AsyncClient) -> None:
    body = {"message": "hi", "session_id": "s"}
    assert (await api.post("/api/chat", json=body, headers={"api-key": KEY})).status_code == 200

    refused, own = await api.get(EXPORT), await api.get(EXPORT, headers={"api-key": KEY})

    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")
    assert own.status_code == 200
    assert (await api.get("/api/sessions/unknown/export")).status_code == 404


@pytest.mark.parametrize("kind", ["pdf", "", "JSON"])
async def test_unknown_format_is_400(api: httpx.AsyncClient, kind: str) -> None:
    await answer(api)

    refused = await api.get(EXPORT, params={"format": kind})

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "format")


async def test_turn_of_an_older_version_is_exported(api: httpx.AsyncClient, tables: Tables) -> None:
    await fill(tables, 1)
    [turn] = (await stored(tables))[1]
    bare = Turn(number=1, started=turn.started, calls=turn.calls, messages=({"role": "assistant"},), etag=turn.etag)
    await tables.sessions.put(rows.from_turn("s", bare), turn.etag)

    assert "*(settled)*" in await exported(api, "markdown")
