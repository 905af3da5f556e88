"""The fault proxy: crash tests prove nothing unless faults are injected exactly where a test wants them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import h11
import httpx
import pytest

from tests.support.azure_openai import AzureOpenAI
from tests.support.loopback import MAX_WAIT_S, Loopback, Wire
from tests.support.proxy import Answer, Close, Cut, Match, Pass, Stall, TcpProxy


class Store(Loopback):
    """Records the bodies of requests and echoes each, chunked."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    async def converse(self, wire: Wire) -> None:
        while message := await wire.message():
            assert isinstance(message.head, h11.Request)
            self.bodies.append(message.body)
            status = 204 if message.head.method == b"DELETE" else 200
            body = [] if status == 204 or message.head.method == b"HEAD" else [h11.Data(data=b"stored " + message.body)]
            await wire.send(
                h11.Response(status_code=status, headers=[("X-Case", "Preserved")]), *body, h11.EndOfMessage()
            )
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
    async with httpx.AsyncClient(base_url=proxy.endpoint, timeout=MAX_WAIT_S) as client:
        yield client


async def test_requests_and_responses_are_relayed_unchanged(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    large = bytes(range(256)) * 4000

    answers = [
        await client.post("/table?$top=1", content=large),
        await client.request("DELETE", "/row"),
        await client.head("/row"),
    ]

    assert answers[0].content == b"stored " + large
    assert answers[0].headers["x-case"] == "Preserved"
    assert [answer.status_code for answer in answers] == [200, 204, 200]
    assert [(seen.method, seen.path) for seen in proxy.seen] == [
        ("POST", "/table?$top=1"),
        ("DELETE", "/row"),
        ("HEAD", "/row"),
    ]
    assert store.bodies == [large, b"", b""]


async def test_chunked_request_is_relayed(store: Store, client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    assert (await client.post("/", content=pieces())).content == b"stored one two"


async def test_rule_applies_to_the_nth_matching_request_only(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
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
    assert (rule.matched, rule.hits) == (3, 1)
    assert proxy.count(Match(path=r"\$batch")) == len(store.bodies) - 1 == 3


@pytest.mark.parametrize("reset", [False, True])
async def test_connection_closed_before_forwarding_stores_nothing(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient, reset: bool
) -> None:
    proxy.on(Match(), Close(reset=reset), times=2)

    for _ in range(2):
        with pytest.raises(httpx.ReadError if reset else httpx.RemoteProtocolError):
            await client.post("/", content="x")
    assert (store.bodies, proxy.seen) == ([], [])
    assert (await client.post("/", content="x")).status_code == 200


@pytest.mark.parametrize("reset", [False, True])
async def test_connection_closed_after_answer_means_the_request_was_committed(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient, reset: bool
) -> None:
    proxy.on(Match("PUT"), Close(after_answer=True, reset=reset))

    with pytest.raises(httpx.ReadError if reset else httpx.RemoteProtocolError):
        await client.put("/", content="x")

    assert store.bodies == [b"x"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("fraction", [0, 0.5, 0.99])
async def test_cut_answer_ends_within_its_body(
    store: Store,
    proxy: TcpProxy,
    client: httpx.AsyncClient,
    framing: Literal["length", "chunked"],
    fraction: float,
) -> None:
    proxy.on(Match("PUT"), Cut(fraction, framing))

    received = bytearray()

    async def read(response: httpx.Response) -> None:
        async for piece in response.aiter_raw():
            received.extend(piece)

    async with client.stream("PUT", "/", content=b"x") as response:
        assert (response.status_code, response.headers["x-case"]) == (200, "Preserved")
        with pytest.raises(httpx.RemoteProtocolError):
            await read(response)

    assert store.bodies == [b"x"]
    assert received == b"stored x"[: int(8 * fraction)]


async def test_cut_answer_without_framing_ends_unnoticed(proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    proxy.on(Match("PUT"), Cut(0.5, "close"))

    answer = await client.put("/", content=b"x")

    assert (answer.status_code, answer.headers["x-case"], answer.content) == (200, "Preserved", b"stor")


async def test_answer_without_a_body_is_not_cut(proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    proxy.on(Match("DELETE"), Cut())

    assert (await client.delete("/row")).status_code == 204


async def test_error_after_answer_means_the_request_was_committed(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    proxy.on(Match("PUT"), Answer(500, after_answer=True))

    assert (await client.put("/", content="x")).status_code == 500

    assert store.bodies == [b"x"]


async def test_stalled_request_is_not_forwarded_until_released(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    rule = proxy.on(Match(), Stall())

    request = asyncio.create_task(client.post("/", content="x"))
    await rule.until_reached()
    assert (store.bodies, request.done()) == ([], False)
    rule.release()

    assert (await request).content == b"stored x"


async def test_stalled_request_is_delivered_after_the_client_disconnects(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    rule = proxy.on(Match(), Stall())

    with pytest.raises(httpx.ReadTimeout):
        await client.post("/", content="late", timeout=httpx.Timeout(MAX_WAIT_S, read=0.1))
    assert store.bodies == []
    proxy.clear()

    await proxy.until(lambda: store.bodies == [b"late"])
    assert rule.hits == 1


async def test_stalled_answer_means_the_request_was_committed(
    store: Store, proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    rule = proxy.on(Match(), Stall(after_answer=True))

    request = asyncio.create_task(client.post("/", content="x"))
    await rule.until_reached()
    assert (store.bodies, request.done()) == ([b"x"], False)
    rule.release()

    assert (await request).content == b"stored x"


async def test_stall_ends_after_its_seconds(proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    proxy.on(Match(), Stall(seconds=0.2))
    started = asyncio.get_running_loop().time()

    assert (await client.get("/")).status_code == 200
    assert asyncio.get_running_loop().time() - started >= 0.2


async def test_rule_can_wait_for_a_matching_request(proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    rule = proxy.on(Match(path="/second"), Pass())

    await client.get("/first")
    assert rule.hits == 0
    await client.get("/second")

    await rule.until_reached()
    proxy.wait_for(lambda: len(proxy.seen) == 2)
    with pytest.raises(TimeoutError):
        proxy.wait_for(lambda: len(proxy.seen) == 3, timeout=0.05)


async def test_proxy_refuses_connections_while_down_and_serves_on_the_same_port_when_up(
    proxy: TcpProxy, client: httpx.AsyncClient
) -> None:
    await client.get("/")
    proxy.down()

    with pytest.raises(httpx.ConnectError):
        await client.get("/")
    proxy.up()

    assert (await client.get("/")).status_code == 200


async def test_stopped_target_closes_the_connection(store: Store, proxy: TcpProxy, client: httpx.AsyncClient) -> None:
    store.stop()

    with pytest.raises(httpx.ReadError):
        await client.get("/")
    store.start()

    assert (await client.get("/")).status_code == 200


async def test_stream_is_relayed_as_it_arrives_and_a_disconnect_reaches_the_target() -> None:
    body: Any = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with AzureOpenAI() as fake, TcpProxy(fake.port) as proxy:
        fake.hold(after=1)
        async with (
            httpx.AsyncClient(headers={"api-key": "test-key"}, timeout=MAX_WAIT_S) as client,
            client.stream("POST", f"{proxy.endpoint}/openai/v1/chat/completions", json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                if "echo" in line:
                    break
            assert fake.meter == []
        await fake.until(lambda: fake.meter)

    assert fake.meter[0].outcome == "hang_up"


async def test_reset_by_the_target_reaches_the_client(store: Store) -> None:
    with AzureOpenAI() as fake, TcpProxy(fake.port) as proxy:
        fake.fault("reset", after=1)
        body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with httpx.AsyncClient(headers={"api-key": "test-key"}, timeout=MAX_WAIT_S) as client:
            with pytest.raises(httpx.ReadError):
                await client.post(f"{proxy.endpoint}/openai/v1/chat/completions", json=body)
