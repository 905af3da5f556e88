"""What one streamed answer costs in CPU time: raw bytes, this app's chunks, the SDK's typed chunks, in one run.

`python -m benchmarks.streaming [answers] [chunks]`. The model's fake is a thread of the same process; only the CPU time
of the reading thread is counted, and each way takes its turn in every round, so that a busy machine hits all alike.
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
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream": True,
    "stream_options": {"include_usage": True},
}
Way = Callable[[], Awaitable[int]]


def ways(base: str, endpoint: Endpoint, typed: AsyncOpenAI, raw: httpx2.AsyncClient) -> dict[str, Way]:
    """Each asks for one answer and returns how much of it there was."""

    dialect = ChatCompletions()

    async def floor() -> int:
        headers = {"api-key": "test-key"}
        async with raw.stream("POST", f"{base}chat/completions", json=BODY, headers=headers) as response:
            return b"".join([part async for part in response.aiter_raw()]).count(b'"content"')

    async def ours() -> int:
        plan = Plan(
            deployment="chat",
            dialect=dialect,
            body=BODY,
            forwarded=True,
            prompt_bound=0,
            max_tokens=0,
            requested_max_tokens=None,
            stored_answer_tokens=0,
        )
        completion = dialect.reader()
        async with AsyncExitStack() as stack:
            _, answer = await endpoint.send(plan, BODY, "0", stack)
            return sum([bool(completion.add(data).shown) async for data in answer])

    async def sdk() -> int:
        pieces = 0
        async for chunk in await typed.chat.completions.create(**BODY):
            pieces += bool(chunk.choices and chunk.choices[0].delta.content)
        return pieces

    return {"raw bytes": floor, "this app's chunks": ours, "the SDK's typed chunks": sdk}


async def measure(answers: int, chunks: int) -> None:
    with AzureOpenAI() as fake:
        fake.responder = lambda _: Reply("word " * chunks)
        base = f"{fake.endpoint}/openai/v1/"
        endpoint = Endpoint(base, "test-key", access=ServiceAccess(""), timeout=60, clock=SystemClock())
        async with AsyncOpenAI(base_url=base, api_key="test-key") as typed, httpx2.AsyncClient() as raw:
            taken: dict[str, list[tuple[float, float]]] = {}
            tried = ways(base, endpoint, typed, raw)
            for number in range(answers + 2):  # the first two warm up
                for name, way in tried.items():
                    wall, cpu = time.perf_counter(), time.thread_time()
                    if await way() < chunks:
                        raise RuntimeError(f"{name}: the answer was not whole")
                    if number > 1:
                        spent = (time.perf_counter() - wall, time.thread_time() - cpu)
                        taken.setdefault(name, []).append(spent)
        await endpoint.close()
    floor = median(cpu for _, cpu in taken["raw bytes"])
    print(f"{answers} answers of {chunks} chunks, medians per answer:")
    for name, times in taken.items():
        wall, cpu = median(wall for wall, _ in times) * 1e3, median(cpu for _, cpu in times)
        print(
            f"  {name:24} {cpu * 1e3:6.2f} ms of CPU ({cpu / floor:.1f} times the floor), {wall:6.2f} ms by the clock"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("answers", type=int, nargs="?", default=100)
    parser.add_argument("chunks", type=int, nargs="?", default=64)
    asked = parser.parse_args()
    asyncio.run(measure(asked.answers, asked.chunks))
