"""A Functions host for the platform's worker library (azure-functions-runtime), which runs it in this process.

Run by tests/infra/test_runtime.py with the platform's Python, in the folder of a deployed package. Answers orders, a
line of JSON each, on standard output: {"index"} -> the functions; {"id", "function", "method", ...} -> an HTTP
request, whose answer comes as it is streamed; {"id", "function", "timer"} -> a firing. It stands in for the host
alone: the worker's protocol buffers are replaced by plain objects, and requests go to the worker over loopback as the
host's proxy sends them.
"""

import asyncio
import base64
import contextlib
import json
import os
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

Order = dict[str, Any]

# What the worker prints must not get between the answers.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def say(**answer: object) -> None:
    answers.write(json.dumps(answer) + "\n")


class Message(SimpleNamespace):
    """A protocol buffer as the worker uses one."""

    def WhichOneof(self, _: str) -> str:  # noqa: N802 - the protocol buffers' own name
        return next(iter(self.__dict__))


class StatusResult(Message):
    Success, Failure = 1, 0


class BindingInfo(Message):
    # https://github.com/Azure/azure-functions-language-worker-protobuf: BindingInfo.Direction, DataType
    inout, out, undefined = 2, 1, 0

    def __init__(self, **fields: object) -> None:
        super().__init__(**fields)


class Protos:
    StatusResult, BindingInfo = StatusResult, BindingInfo

    def __getattr__(self, name: str) -> type[Message]:
        return Message


def request(**fields: object) -> Message:
    return Message(request=Message(**fields), properties={"host": "127.0.0.1", "protos": Protos()})


class Host:
    def __init__(self) -> None:
        self.address = ""
        self.functions: dict[str, Any] = {}

    async def index(self) -> None:
        import azure_functions_runtime as worker  # type: ignore[import-not-found]  # its own environment has it

        self.worker = worker
        started = await worker.worker_init_request(
            request(worker_init_request=Message(capabilities={}, function_app_directory=str(Path.cwd())))
        )
        if started.result.status != StatusResult.Success:
            say(failed=str(started.result.exception.message))
            return
        self.address = started.capabilities["HttpUri"]
        await self._listens()
        metadata = await worker.functions_metadata_request(request())
        self.functions = {found.name: found for found in metadata.function_metadata_results}
        say(functions={name: [json.loads(b) for b in found.raw_bindings] for name, found in self.functions.items()})

    async def _listens(self) -> None:
        """The worker says its address before its server listens there."""
        where = urlsplit(self.address)
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(where.hostname, where.port)
                writer.close()
                return
            await asyncio.sleep(0.01)

    async def carry_out(self, order: Order) -> None:
        try:
            await (self.fire(order) if order.get("timer") else self.forward(order))
        except Exception as error:
            say(id=order["id"], failed=repr(error))

    async def invoke(self, order: Order, trigger: Message) -> None:
        function = self.functions[order["function"]]
        name = next(b["name"] for b in map(json.loads, function.raw_bindings) if b["type"].endswith("Trigger"))
        invocation = Message(
            invocation_id=order["id"],
            function_id=function.function_id,
            input_data=[Data(name, trigger)],
            trigger_metadata={},
            trace_context=Message(trace_parent="", trace_state="", attributes={}),
            retry_context=Message(retry_count=0, max_retry_count=0, exception=None),
        )
        done = await self.worker.invocation_request(request(invocation_request=invocation))
        failed = done.result.status != StatusResult.Success
        say(id=order["id"], invoked=not failed, exception=str(done.result.exception.message) if failed else None)

    async def fire(self, order: Order) -> None:
        await self.invoke(order, Message(json=json.dumps({"IsPastDue": False, "ScheduleStatus": {}, "Schedule": {}})))

    async def forward(self, order: Order) -> None:
        params = order.get("params", {})
        url = f"https://app.example/{order['path']}"
        trigger = Message(
            http=Message(method=order["method"], url=url, headers={}, params=params, query={}, body=Message(bytes=b""))
        )
        invoking = asyncio.create_task(self.invoke(order, trigger))
        headers = {**order.get("headers", {}), "x-ms-invocation-id": order["id"]}
        async with (
            aiohttp.ClientSession(trust_env=False) as client,
            client.request(
                order["method"], f"{self.address}{order['path']}", headers=headers, json=order.get("body")
            ) as response,
        ):
            say(id=order["id"], status=response.status, headers=dict(response.headers))
            async for part in response.content.iter_any():
                say(id=order["id"], part=base64.b64encode(part).decode())
        await invoking
        say(id=order["id"], end=True)


class Data:
    """An invocation's input: a name, and a value that the worker asks for by the name of its kind."""

    def __init__(self, name: str, value: Message) -> None:
        self.name, self.data = name, value

    def WhichOneof(self, _: str) -> str:  # noqa: N802
        return "data"


async def main() -> None:
    host, loop = Host(), asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    running = set()
    await host.index()
    while line := await orders.readline():
        order = {"id": str(uuid.uuid4()), **json.loads(line)}
        running.add(asyncio.create_task(host.carry_out(order)))
    await asyncio.gather(*running)


sys.path.append(str(Path.cwd()))  # last, as on Flex Consumption
asyncio.run(main())
