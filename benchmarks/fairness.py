"""A caller at full tilt beside another at its usual pace: `python -m benchmarks.fairness [--hosts 2] [--seconds 20]`.

The deployment has a quota of requests per minute, and answers 429 beyond it. Ben starts a turn every half second, each
in a new session. Ben is measured alone, beside Ann's 16 requests at once that never wait and have no limit, and beside
the same with `requests_per_minute` for Ann. Each run begins with a UTC minute, so that it has one quota.

The hosts are processes of this machine, the model service, storage and the callers run beside them, so waiting times
include the cores' share that Ann's requests take. Ben's turns that were refused or failed do not depend on the machine.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx

from benchmarks.machine import Usage, table_service
from local import azurite
from local.keys import line
from tests.support.azure_openai import AzureOpenAI, Fault, Request, Script
from tests.support.processes import Host, HostFactory

KEYS = {name: f"a-client-key-of-{name}" for name in ("ann", "ben")}
QUOTA, ANNS = 120, 60  # requests per minute: of the deployment, and Ann's limit
AT_ONCE = 16
PAUSE_S = 0.5  # from one of Ben's turns to the next
PRICES = '{"chat": {"input": 0.75, "cached_input": 0.075, "cache_write": 0.9, "output": 4.5}}'


@dataclass
class Turns:
    """Of one caller: how many ended with each status, and how long the answered ones took, in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        others = ", ".join(f"{count} with {status}" for status, count in self.statuses.items() if status != 200)
        times = sorted(self.seconds) or [0.0]
        late = times[int(len(times) * 0.95)]
        waits = f"median {median(times):.2f} s, 95 % below {late:.2f} s, longest {times[-1]:.2f} s"
        return f"{self.statuses[200]} turns answered ({waits}), refused or failed: {others or 'none'}"


def with_quota(fake: AzureOpenAI) -> None:
    answer, answered = fake.responder, Counter[int]()

    def respond(request: Request) -> Script:
        minute = int(time.time() // 60)
        answered[minute] += 1
        return Fault("status", 429, retry_after=60) if answered[minute] > QUOTA else answer(request)

    fake.responder, fake.chunk_delay = respond, 0.02


async def take_turn(http: httpx.AsyncClient, hosts: list[Host], caller: str, session: str, turns: Turns) -> None:
    began, host = time.perf_counter(), random.choice(hosts)  # noqa: S311 - not a secret
    headers, body = {"authorization": f"Bearer {KEYS[caller]}"}, {"message": "hi", "session_id": session}
    response = await http.post(f"{host.base}/api/chat", json=body, headers=headers)
    turns.statuses[response.status_code] += 1
    if response.status_code == 200:
        turns.seconds.append(time.perf_counter() - began)


async def run(hosts: list[Host], seconds: float, *, beside: bool) -> tuple[Turns, Turns]:
    ann, ben = Turns(), Turns()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=600, limits=limits) as http:  # noqa: S501 - loopback
        for host in hosts:  # connects
            await http.get(f"{host.base}/api/models")
        await asyncio.sleep(60 - time.time() % 60)
        end = time.time() + seconds

        async def at_full_tilt(session: str) -> None:
            while time.time() < end:
                await take_turn(http, hosts, "ann", session, ann)

        async def at_usual_pace() -> None:
            number = 0
            async with asyncio.TaskGroup() as group:
                while time.time() < end:
                    group.create_task(take_turn(http, hosts, "ben", f"ben-{number}", ben))
                    number += 1
                    await asyncio.sleep(PAUSE_S)

        greedy = [at_full_tilt(f"ann-{number}") for number in range(AT_ONCE)] if beside else []
        await asyncio.gather(at_usual_pace(), *greedy)
    return ann, ben


def measure(what: str, count: int, seconds: float, *, beside: bool, limit: int | None) -> Turns:
    """Print the run's lines; return Ben's turns."""
    limits = {"total": {"usd_per_day": 1000}} | ({"key:ann": {"requests_per_minute": limit}} if limit else {})
    with ExitStack() as stack:
        port, pid = stack.enter_context(table_service())
        fake = stack.enter_context(AzureOpenAI())
        with_quota(fake)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environ = {
            "AZURE_OPENAI_ENDPOINT": fake.endpoint,
            "AZURE_OPENAI_API_KEY": "test-key",
            "AZURE_OPENAI_MODEL": "chat",
            "AZURE_OPENAI_MAX_RETRIES": "0",
            "PRICES": PRICES,
            "TABLES_CONNECTION_STRING": azurite.connection_string(port),
            "CLIENT_KEYS": ",".join(line(*item) for item in KEYS.items()),
            "LIMITS": json.dumps(limits),
        }
        factory = stack.enter_context(HostFactory())
        hosts = [factory.host(environ, folder / f"{number}.log") for number in range(count)]
        usage = Usage((pid, *(host.pid for host in hosts)))
        ann, ben = asyncio.run(run(hosts, seconds, beside=beside))
        print(
            f"{what}\n  Ben: {ben}\n" + (f"  Ann: {ann}\n" if beside else "") + f"  CPU: {usage.report()}", flush=True
        )
        for host in hosts:
            host.kill()
    return ben


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20)
    chosen = parser.parse_args()
    alone, unlimited, limited = (
        measure(what, chosen.hosts, chosen.seconds, beside=beside, limit=limit)
        for what, beside, limit in (
            ("Ben alone", False, ANNS),
            ("Ben beside Ann without a limit", True, None),
            (f"Ben beside Ann with {ANNS} requests per minute", True, ANNS),
        )
    )
    print(
        "Ben's share of turns answered beside Ann: "
        f"{share(unlimited):.2f} without Ann's limit, {share(limited):.2f} with it;"
        f" median waiting time with it over alone: {median(limited.seconds) / median(alone.seconds):.1f}"
    )


def share(turns: Turns) -> float:
    return turns.statuses[200] / max(1, turns.statuses.total())


if __name__ == "__main__":
    main()
