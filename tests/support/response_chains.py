"""Drives openai/v1/responses and conversations with requests of all kinds, and checks what they leave in order."""

from asyncio import gather, sleep
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from tests.support.chat_client import JSON, get_json, until
from tests.support.response_streams import checked
from tests.support.responses_api import ROUTE, created_in

CONVERSATIONS = "/openai/v1/conversations"
STREAMED = ("stream", "stop", "disconnect", "stop on disconnect", "delete meanwhile")
_LOGPROBS = "message.output_text.logprobs"


def options_of(chat: JSON) -> JSON:
    """Options of chat completions as those of a response."""
    options: JSON = {name: chat[name] for name in ("temperature",) if name in chat}
    if "max_tokens" in chat:
        options["max_output_tokens"] = chat["max_tokens"]
    if "logprobs" in chat:
        options["include"] = [_LOGPROBS]
    if "response_format" in chat:
        options["text"] = {"format": chat["response_format"]}
    if "tools" in chat:
        options["tools"] = [{"type": "function", **tool["function"]} for tool in chat["tools"]]
    return options


@dataclass
class Node:
    """A response that was begun. `inputs`: its own, as `shown` has them. `parent`: the id of the one that it
    continues."""

    inputs: list[str]
    parent: str | None
    deleted: bool = False


@dataclass
class ResponseChain:
    """Responses that continue one another with `previous_response_id`, in place or in branches; with a
    `conversation` those of it."""

    api: httpx.AsyncClient
    conversation: str | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    deleted_items: set[str] = field(default_factory=set)
    _keys: int = 0

    @property
    def sessions(self) -> set[str]:
        ids = {response.removeprefix("resp_")[:32] for response in self.nodes}
        return ids | ({self.conversation.removeprefix("conv_")} if self.conversation else set())

    async def take(self, text: str, options: JSON, mode: str) -> None:
        """One request, or several, as `mode` says. A failure of the model service or a lock is no error."""
        if mode == "clear":
            await self._delete()
        latest = await self._answered(oldest=mode == "fork")
        parent = None if self.conversation else latest
        body = {"model": "chat", "stream": mode in STREAMED, **options_of(options)}
        body["input"] = text if mode in ("ignore calls", "at once") else await self._input(text, latest)
        if mode == "unstored":
            body["store"] = False
        if self.conversation and mode != "unstored":
            body["conversation"] = self.conversation
        elif parent:
            body["previous_response_id"] = parent
        match mode:
            case "repeat":
                await self._repeat(body, parent)
            case "at once":
                await gather(self._send(body, parent, mode), self._send(body, parent, mode))
            case _:
                await self._send(body, parent, mode)

    async def finish(self) -> None:
        """Wait for what goes on after its client has disconnected."""
        for name in self.nodes:
            await until(partial(self._ended, name))

    async def check(self) -> None:
        """The items are those of the responses, in order, however they are listed."""
        stored = {name: await self._stored(name) for name in self.nodes}
        for name, node in self.nodes.items():
            assert (stored[name] is None) == node.deleted, "a response is missing, or was not deleted"
        answered = {name: each for name, each in stored.items() if each and is_answered(each)}
        if self.conversation:
            by_turn = [name for name in sorted(self.nodes) if name in answered]
            expected = [each for name in by_turn for each in self._items_of(name, answered)]
            assert await self._listed(f"{CONVERSATIONS}/{self.conversation}/items") == expected
            return
        for name in answered:
            past = [each for ancestor in self._past(name) for each in self._items_of(ancestor, answered)]
            assert await self._listed(f"{ROUTE}/{name}/input_items") == [*past, *self.nodes[name].inputs]

    def _items_of(self, name: str, answered: dict[str, JSON]) -> list[str]:
        """The response's input and output, without what was deleted."""
        if name not in answered:
            return []
        output = [shown(item) for item in answered[name]["output"] if item["id"] not in self.deleted_items]
        return [*self.nodes[name].inputs, *output]

    def _past(self, name: str) -> list[str]:
        """The responses that it continues, oldest first."""
        parent = self.nodes[name].parent
        return [*self._past(parent), parent] if parent else []

    async def _answered(self, *, oldest: bool = False) -> str | None:
        """The newest (or oldest) response that has an answer, or is being answered."""
        for name in self.nodes if oldest else reversed(self.nodes):
            if (response := await self._stored(name)) and (
                is_answered(response) or response["status"] == "in_progress"
            ):
                return name
        return None

    async def _input(self, text: str, latest: str | None) -> str | list[JSON]:
        """The results of the calls of the latest response, or else a message."""
        response = await self._stored(latest) if latest else None
        calls = [item["call_id"] for item in response["output"] if item["type"] == "function_call"] if response else []
        return [{"type": "function_call_output", "call_id": call, "output": text} for call in calls] or text

    async def _repeat(self, body: JSON, parent: str | None) -> None:
        """Twice at once and once more with the same Idempotency-Key: one response."""
        self._keys += 1
        key = f"{self.conversation or id(self)}-{self._keys}-{'k' * 22}"
        first = await gather(*(self._send(body, parent, "repeat", key) for _ in range(2)))
        again = await self._send(body, parent, "repeat", key)
        ids = {each["id"] for each in (*first, again) if each}
        assert len(ids) <= 1, "a repeated request was answered by two responses"
        assert again or not ids, "the stored response was not found again"

    async def _send(self, body: JSON, parent: str | None, mode: str, key: str | None = None) -> JSON | None:
        """The response, or None if there is none (yet)."""
        headers = {"x-on-disconnect": "stop"} if mode == "stop on disconnect" else {}
        headers |= {"idempotency-key": key} if key else {}
        while True:
            async with self.api.stream("POST", ROUTE, json=body, headers=headers) as response:
                if response.status_code == 200 and mode in STREAMED and mode != "stream":
                    begun = await created_in(response)
                    self._began(begun, body, parent)
                    if mode.endswith("disconnect"):
                        return None
                    await (self._stop(begun) if mode == "stop" else self._delete(of=parent))
                    return None
                text = (await response.aread()).decode()
            if response.status_code == 200:
                break
            error = response.json()["error"]
            assert response.status_code != 500, text
            if error["code"] == "conversation_locked" or "still" in error["message"]:
                await sleep(0.01)
                continue
            assert error["code"] != "unknown_parameter", text
            return None
        done: JSON = checked(text)[-1]["response"] if body["stream"] else response.json()
        if body.get("store", True):
            self._began(done, body, parent)
        return done if is_answered(done) else None

    def _began(self, response: JSON, body: JSON, parent: str | None) -> None:
        text = body["input"]
        inputs = [f"message {text}"] if isinstance(text, str) else [shown(item) for item in text]
        self.nodes.setdefault(response["id"], Node(inputs, parent))

    async def _stop(self, response: JSON) -> None:
        session = response["id"].removeprefix("resp_")[:32]
        stopped = await self.api.post(f"/api/sessions/{session}/stop")
        assert stopped.is_success, stopped.text

    async def _delete(self, of: str | None = None) -> None:
        """Delete a response, of a conversation its latest item, if nothing is in the way."""
        if self.conversation:
            path = f"{CONVERSATIONS}/{self.conversation}/items"
            newest = (await get_json(self.api, f"{path}?limit=1"))["data"]
            output = [item for item in newest if item["type"] == "message" and item["role"] == "assistant"]
            if output and await self._deleted(f"{path}/{output[0]['id']}"):
                self.deleted_items.add(output[0]["id"])
        elif (target := of or await self._answered()) and await self._deleted(f"{ROUTE}/{target}"):
            self.nodes[target].deleted = True

    async def _deleted(self, path: str) -> bool:
        response = await self.api.delete(path)
        assert response.status_code in (200, 400, 404, 409), response.text
        return response.status_code == 200

    async def _stored(self, name: str) -> JSON | None:
        response = await self.api.get(f"{ROUTE}/{name}")
        assert response.status_code in (200, 404), response.text
        return response.json() if response.status_code == 200 else None

    async def _ended(self, name: str) -> bool | None:
        stored = await self._stored(name)
        return None if stored and stored["status"] == "in_progress" else True

    async def _listed(self, path: str) -> list[str]:
        """All items, page by page, oldest first; newest first they are the same."""
        listed: dict[str, list[Any]] = {}
        for order in ("asc", "desc"):
            page: JSON = {"has_more": True, "last_id": None}
            listed[order] = []
            while page["has_more"]:
                after = f"&after={page['last_id']}" if page["last_id"] else ""
                page = await get_json(self.api, f"{path}?limit=3&order={order}{after}")
                listed[order] += page["data"]
        assert listed["desc"] == listed["asc"][::-1]
        assert len({item["id"] for item in listed["asc"]}) == len(listed["asc"])
        return [shown(item) for item in listed["asc"]]


def is_answered(response: JSON) -> bool:
    """True if it can be continued: it has ended with an answer, or with a part of one."""
    reason = (response["incomplete_details"] or {}).get("reason")
    return response["status"] in ("completed", "incomplete") and (reason != "stopped" or bool(response["output"]))


def shown(item: JSON) -> str:
    """What an item says, without its id."""
    if item["type"] == "message":
        return "message " + "".join(part.get("text", part.get("refusal", "")) for part in item["content"])
    return f"{item['type']} {item['call_id']}"
