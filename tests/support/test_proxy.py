"""A fault that is not injected where the test says makes a crash test prove nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import h11
import httpx
import pytest

from tests.support.azure_openai import AzureOpenAI
from tests.support.loopback import PATIENCE, Loopback, Wire
from tests.support.proxy import Answer, Close, Match, Pass, Stall, TcpProxy


class Store(Loopback):
    """Keeps the bodies it is sent, and answers each with it, chunked."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []

    async def converse(self, wire: Wire) -> None:
        while message := await wire.message():
            assert isinstance(message.head, h11.Request)
            self.kept.append(message.body)
            status = 204 if message.head.method == b"DELETE" else 200
            body = [] if status == 204 or message.head.method == b"HEAD" else [h11.Data(data=b"kept " + message.body)]
            await wire.send(h11.Response(status_code=status, headers=[("X-Case", "Kept")]), *body, h11.EndOfMessage())
            wire.http.start_next_cycle()


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as store:
        yield store


@pytest.fixture
def proxy(store: Store) -> Iterator[TcpProxy]:
    with TcpProxy(store.port) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: TcpProxy) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=proxy.endpoint, timeout=PATIENCE) as client:
        yield client


async def test_requests_and_answers_pass_unchanged(store: Store, proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    large = bytes(range(256)) * 4000

    answers = [
        await client.post("/table?$top=1", content=large),
        await client.request("DELETE", "/row"),
        await client.head("/row"),
    ]

    assert answers[0].content == b"kept " + large
    assert answers[0].headers["x-case"] == "Kept"
    assert [answer.status_code for answer in answers] == [200, 204, 200]
    assert [(seen.method, seen.path) for seen in proxy.seen] == [
        ("POST", "/table?$top=1"),
        ("DELETE", "/row"),
        ("HEAD", "/row"),
    ]
    assert store.kept == [large, b"", b""]


async def test_a_chunked_request_passes(store: Store, client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    assert (await client.post("/", content=pieces())).content == b"kept one two"


async def test_only_the_kth_fitting_request_is_met(store: Store, proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    rule = proxy.on(
        Match("POST", path=r"\$batch", body="row.*head"), Answer(503, b"no", (("Retry-After", "1"),)), nth=2
    )

    statuses = []
    for path, body in [
        ("/$batch", "row head"),
        ("/$batch", "turn"),
        ("/rows", "row head"),
        ("/$batch", "row\nhead"),
        ("/$batch", "row head"),
    ]:
        answer = await client.post(path, content=body)
        statuses.append(answer.status_code)

    assert statuses == [200, 200, 200, 503, 200]
    assert (rule.fitting, rule.hits) == (3, 1)
    assert proxy.count(Match(path=r"\$batch")) == len(store.kept) - 1 == 3


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_lost_before_forwarding_stores_nothing(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient, reset: bool
) -> None:
    proxy.on(Match(), Close(reset=reset), times=2)

    for _ in range(2):
        with pytest.raises(httpx.ReadError if reset else httpx.RemoteProtocolError):
            await client.post("/", content="x")
    assert (store.kept, proxy.seen) == ([], [])
    assert (await client.post("/", content="x")).status_code == 200


@pytest.mark.parametrize("reset", [False, True])
async def test_a_dropped_answer_was_committed(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient, reset: bool
) -> None:
    proxy.on(Match("PUT"), Close(after_answer=True, reset=reset))

    with pytest.raises(httpx.ReadError if reset else httpx.RemoteProtocolError):
        await client.put("/", content="x")

    assert store.kept == [b"x"]


async def test_what_is_answered_with_an_error_may_have_been_committed(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    proxy.on(Match("PUT"), Answer(500, after_answer=True))

    assert (await client.put("/", content="x")).status_code == 500

    assert store.kept == [b"x"]


async def test_a_kept_request_is_not_forwarded_until_released(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    rule = proxy.on(Match(), Stall())

    asked = asyncio.create_task(client.post("/", content="x"))
    await rule.until_reached()
    assert (store.kept, asked.done()) == ([], False)
    rule.release()

    assert (await asked).content == b"kept x"


async def test_a_kept_request_is_delivered_although_its_client_has_gone(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    rule = proxy.on(Match(), Stall())

    with pytest.raises(httpx.ReadTimeout):
        await client.post("/", content="late", timeout=httpx.Timeout(PATIENCE, read=0.1))
    assert store.kept == []
    proxy.clear()

    await proxy.until(lambda: store.kept == [b"late"])
    assert rule.hits == 1


async def test_a_kept_answer_was_committed(store: Store, proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    rule = proxy.on(Match(), Stall(after_answer=True))

    asked = asyncio.create_task(client.post("/", content="x"))
    await rule.until_reached()
    assert (store.kept, asked.done()) == ([b"x"], False)
    rule.release()

    assert (await asked).content == b"kept x"


async def test_a_stall_can_end_by_itself(proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    proxy.on(Match(), Stall(seconds=0.2))
    started = asyncio.get_running_loop().time()

    assert (await client.get("/")).status_code == 200
    assert asyncio.get_running_loop().time() - started >= 0.2


async def test_a_request_can_be_waited_for(proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    rule = proxy.on(Match(path="/second"), Pass())

    await client.get("/first")
    assert rule.hits == 0
    await client.get("/second")

    await rule.until_reached()
    proxy.wait_for(lambda: len(proxy.seen) == 2)
    with pytest.raises(TimeoutError):
        proxy.wait_for(lambda: len(proxy.seen) == 3, timeout=0.05)


async def test_down_refuses_and_up_serves_on_the_same_port(proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    await client.get("/")
    proxy.down()

    with pytest.raises(httpx.ConnectError):
        await client.get("/")
    proxy.up()

    assert (await client.get("/")).status_code == 200


async def test_a_dead_target_is_a_lost_connection(store: Store, proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    store.stop()

    with pytest.raises(httpx.ReadError):
        await client.get("/")
    store.start()

    assert (await client.get("/")).status_code == 200


async def test_a_stream_passes_as_it_comes_and_a_hang_up_reaches_the_target() -> None:
    body: Any = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with AzureOpenAI() as fake, TcpProxy(fake.port) as proxy:
        fake.hold(after=1)
        async with (
            httpx.AsyncClient(headers={"api-key": "test-key"}, timeout=PATIENCE) as client,
            client.stream("POST", f"{proxy.endpoint}/openai/v1/chat/completions", json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                if "echo" in line:
                    break
            assert fake.meter == []
        await fake.until(lambda: fake.meter)

    assert fake.meter[0].outcome == "hang_up"


async def test_a_reset_of_the_targets_passes(store: Store) -> None:
    with AzureOpenAI() as fake, TcpProxy(fake.port) as proxy:
        fake.fault("reset", after=1)
        body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with httpx.AsyncClient(headers={"api-key": "test-key"}, timeout=PATIENCE) as client:
            with pytest.raises(httpx.ReadError):
                await client.post(f"{proxy.endpoint}/openai/v1/chat/completions", json=body)
