"""CPU time to read one streamed answer, in three ways: as raw bytes, as this app's chunks, as the SDK's typed chunks.

`python -m benchmarks.streaming [answers] [chunks]`. The fake model is a thread of the same process; only the CPU time
of the reading thread is counted. Every round measures all three, so that load on the machine affects them equally.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import httpx2
from openai import AsyncOpenAI

from shared.access.identity import ServiceAccess
from shared.domain.clock import SystemClock
from shared.model.chat_completions import ChatCompletions
from shared.model.endpoint import Endpoint
from shared.turns.ports import Plan
from tests.support.azure_openai import AzureOpenAI, Reply

BODY: dict[str, Any] = {
    "model": "chat",
    "messages": [{"role": "user", "content": "Write a story."}],
    "stream": True,
    "stream_options": {"include_usage": True},
}
Reader = Callable[[], Awaitable[int]]


def readers(base: str, endpoint: Endpoint, typed: AsyncOpenAI, raw: httpx2.AsyncClient) -> dict[str, Reader]:
    """Each reader requests one answer and returns the number of its chunks."""
    dialect = ChatCompletions()

    async def raw_bytes() -> int:
        headers = {"api-key": "test-key"}
        async with raw.stream("POST", f"{base}chat/completions", json=BODY, headers=headers) as response:
            return b"".join([part async for part in response.aiter_raw()]).count(b'"content"')

    async def app_chunks() -> int:
        plan = Plan(
            deployment="chat",
            dialect=dialect,
            body=BODY,
            forwarded=True,
            added=frozenset(),
            prompt_bound=0,
            max_tokens=0,
            requested_max_tokens=None,
            stored_answer_tokens=0,
        )
        completion = dialect.reader(BODY)
        async with AsyncExitStack() as stack:
            _, answer = await endpoint.send(plan, BODY, "0", stack)
            pieces = [completion.add(event.data) async for event in answer]
        return sum(bool(piece and piece.shown) for piece in pieces)

    async def sdk_chunks() -> int:
        count = 0
        async for chunk in await typed.chat.completions.create(**BODY):
            count += bool(chunk.choices and chunk.choices[0].delta.content)
        return count

    return {"raw bytes": raw_bytes, "this app's chunks": app_chunks, "the SDK's typed chunks": sdk_chunks}


async def measure(answers: int, chunks: int) -> None:
    with AzureOpenAI() as fake:
        fake.responder = lambda _: Reply("word " * chunks)
        base = f"{fake.endpoint}/openai/v1/"
        endpoint = Endpoint(base, "test-key", access=ServiceAccess(""), timeout=60, clock=SystemClock())
        async with AsyncOpenAI(base_url=base, api_key="test-key") as typed, httpx2.AsyncClient() as raw:
            times: dict[str, list[tuple[float, float]]] = {}  # wall and CPU time in seconds
            measured = readers(base, endpoint, typed, raw)
            for number in range(answers + 2):  # the first two warm up
                for name, read in measured.items():
                    wall, cpu = time.perf_counter(), time.thread_time()
                    if await read() < chunks:
                        raise RuntimeError(f"{name}: the answer is incomplete")
                    if number > 1:
                        elapsed = (time.perf_counter() - wall, time.thread_time() - cpu)
                        times.setdefault(name, []).append(elapsed)
        await endpoint.close()
    baseline = median(cpu for _, cpu in times["raw bytes"])
    print(f"{answers} answers of {chunks} chunks, medians per answer:")
    for name, samples in times.items():
        wall, cpu = median(wall for wall, _ in samples) * 1e3, median(cpu for _, cpu in samples)
        print(
            f"  {name:24} {cpu * 1e3:6.2f} ms of CPU time ({cpu / baseline:.1f} times raw bytes),"
            f" {wall:6.2f} ms of wall time"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("answers", type=int, nargs="?", default=100)
    parser.add_argument("chunks", type=int, nargs="?", default=64)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.answers, arguments.chunks))
