"""A minimal Functions host that runs the platform's worker library (azure-functions-runtime) in this process.

tests/infra/test_runtime.py starts it with the platform's Python, in the folder of a deployed package. It reads commands
from standard input and writes answers to standard output, one JSON object per line: first the indexed functions; for
{"id", "function", "method", ...} an HTTP response, as it is streamed; for {"id", "function", "timer"} the result of
the timer. It replaces only the host: the worker's protocol buffers are plain objects here, and requests go to the
worker over loopback, as the host's proxy sends them.
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

Command = dict[str, Any]

# Standard output is for answers only; prints of the worker go to standard error.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def write_answer(**answer: object) -> None:
    answers.write(json.dumps(answer) + "\n")


class Message(SimpleNamespace):
    """A protocol buffer, as far as the worker uses it."""

    def WhichOneof(self, _: str) -> str:  # noqa: N802 - named by protocol buffers
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
        import azure_functions_runtime as worker  # type: ignore[import-not-found]  # installed in its own environment only

        self.worker = worker
        started = await worker.worker_init_request(
            request(worker_init_request=Message(capabilities={}, function_app_directory=str(Path.cwd())))
        )
        if started.result.status != StatusResult.Success:
            write_answer(failed=str(started.result.exception.message))
            return
        self.address = started.capabilities["HttpUri"]
        await self._wait_until_listening()
        metadata = await worker.functions_metadata_request(request())
        self.functions = {function.name: function for function in metadata.function_metadata_results}
        write_answer(
            functions={
                name: [json.loads(b) for b in function.raw_bindings] for name, function in self.functions.items()
            }
        )

    async def _wait_until_listening(self) -> None:
        """Wait for the worker's server: the worker reports its address before it listens there."""
        url = urlsplit(self.address)
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(url.hostname, url.port)
                writer.close()
                return
            await asyncio.sleep(0.01)

    async def execute(self, command: Command) -> None:
        try:
            await (self.fire(command) if command.get("timer") else self.forward(command))
        except Exception as error:
            write_answer(id=command["id"], failed=repr(error))

    async def invoke(self, command: Command, trigger: Message) -> None:
        function = self.functions[command["function"]]
        name = next(b["name"] for b in map(json.loads, function.raw_bindings) if b["type"].endswith("Trigger"))
        invocation = Message(
            invocation_id=command["id"],
            function_id=function.function_id,
            input_data=[Data(name, trigger)],
            trigger_metadata={},
            trace_context=Message(trace_parent="", trace_state="", attributes={}),
            retry_context=Message(retry_count=0, max_retry_count=0, exception=None),
        )
        response = await self.worker.invocation_request(request(invocation_request=invocation))
        failed = response.result.status != StatusResult.Success
        write_answer(
            id=command["id"], invoked=not failed, exception=str(response.result.exception.message) if failed else None
        )

    async def fire(self, command: Command) -> None:
        await self.invoke(command, Message(json=json.dumps({"IsPastDue": False, "ScheduleStatus": {}, "Schedule": {}})))

    async def forward(self, command: Command) -> None:
        params = command.get("params", {})
        url = f"https://app.example/{command['path']}"
        trigger = Message(
            http=Message(
                method=command["method"], url=url, headers={}, params=params, query={}, body=Message(bytes=b"")
            )
        )
        invoking = asyncio.create_task(self.invoke(command, trigger))
        headers = {**command.get("headers", {}), "x-ms-invocation-id": command["id"]}
        async with (
            aiohttp.ClientSession(trust_env=False) as client,
            client.request(
                command["method"],
                f"{self.address}{command['path']}",
                headers=headers,
                json=command.get("body"),
                allow_redirects=False,
            ) as response,
        ):
            write_answer(id=command["id"], status=response.status, headers=dict(response.headers))
            async for part in response.content.iter_any():
                write_answer(id=command["id"], part=base64.b64encode(part).decode())
                if command.get("disconnect"):  # after the first part
                    response.close()
                    break
        await invoking
        write_answer(id=command["id"], end=True)


class Data:
    """An input of an invocation: a name and a value, which the worker reads by the name of its type."""

    def __init__(self, name: str, value: Message) -> None:
        self.name, self.data = name, value

    def WhichOneof(self, _: str) -> str:  # noqa: N802
        return "data"


async def main() -> None:
    host, loop = Host(), asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    running = set()
    await host.index()
    while line := await commands.readline():
        command = {"id": str(uuid.uuid4()), **json.loads(line)}
        running.add(asyncio.create_task(host.execute(command)))
    await asyncio.gather(*running)


sys.path.append(str(Path.cwd()))  # last, as on Flex Consumption
asyncio.run(main())
