"""Base of the test servers: a port, a thread with its own event loop, and byte-level HTTP/1.1.

Clients connect over real TCP, from the test process or another one. Nothing here depends on chats or tables.
"""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

import h11

T = TypeVar("T")
MAX_HEAD_BYTES = 256 * 1024
MAX_WAIT_S = 60.0  # generous, because the machine may be busy


class Gate:
    """A point where a server waits until the test releases it."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened: Future[None] = Future()

    @property
    def reached(self) -> bool:
        return self._reached.is_set()

    @property
    def open(self) -> bool:
        return self._opened.done()

    def wait(self, timeout: float = MAX_WAIT_S) -> None:
        """Wait until the server reaches the gate. Blocks the thread: never call it in the event loop of the client."""
        if not self._reached.wait(timeout):
            raise TimeoutError(f"the gate was not reached within {timeout} s")

    async def until_reached(self, timeout: float = MAX_WAIT_S) -> None:  # noqa: ASYNC109 - it bounds a thread, not a task
        await asyncio.to_thread(self.wait, timeout)

    def release(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def arrive(self) -> None:
        self._reached.set()

    async def enter(self) -> None:
        self.arrive()
        await asyncio.shield(asyncio.wrap_future(self._opened))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Message:
    """A complete HTTP request or response."""

    def __init__(self, head: h11.Request | h11.Response, body: bytes) -> None:
        self.head, self.body = head, body


class Wire:
    """One side of an HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, server: bool) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # drain() then returns only when the kernel has all bytes
        self._reader, self._writer = reader, writer
        self.http = h11.Connection(h11.SERVER if server else h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def event(self) -> object:
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self._reader.read(65536))
            elif not isinstance(event, h11.InformationalResponse):
                return event

    async def message(self) -> Message | None:
        """The next complete message; None when the peer has closed."""
        head = await self.event()
        if not isinstance(head, h11.Request | h11.Response):
            return None
        body = bytearray()
        while isinstance(part := await self.event(), h11.Data):
            body += part.data
        return Message(head, bytes(body))

    async def send(self, *events: h11.Event) -> None:
        self._writer.write(b"".join(self.http.send(event) or b"" for event in events))
        await self._writer.drain()

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes that h11 would not."""
        self._writer.write(data)
        await self._writer.drain()

    async def until_gone(self, work: Coroutine[object, object, T]) -> T:
        """Return the result of `work`. If the peer disconnects first, cancel `work` and raise ConnectionResetError."""
        job, watch = asyncio.ensure_future(work), asyncio.ensure_future(self._peer_gone())
        try:
            await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise ConnectionResetError("the peer disconnected")
            return job.result()
        finally:
            job.cancel()
            watch.cancel()
            await asyncio.gather(job, watch, return_exceptions=True)

    async def _peer_gone(self) -> None:
        while received := await self._reader.read(65536):
            self.http.receive_data(received)
        self.http.receive_data(b"")

    def reset(self) -> None:
        """Close the connection with a TCP RST."""
        connection = self._writer.get_extra_info("socket")
        if not self._writer.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


class Loopback:
    """A server on 127.0.0.1. `stop` resets all connections and refuses new ones until it is started again."""

    def __init__(self, port: int = 0) -> None:
        # Bound but never listening: connections are refused, and no other process can get the port while it is stopped.
        self._reserved = _bound(port)
        self.port: int = self._reserved.getsockname()[1]
        self.crashes: list[Exception] = []
        self._thread: threading.Thread | None = None
        self._stopping = Gate()
        self._connections: set[asyncio.Task[None]] = set()

    async def converse(self, wire: Wire) -> None:
        """Serve one connection until it closes."""
        raise NotImplementedError

    @property
    def stopping(self) -> bool:
        return self._stopping.open

    def start(self) -> None:
        if self._thread is None:
            listening = _bound(self.port)
            listening.listen(512)
            self._stopping = Gate()
            self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._stopping.release()
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Stop for good and raise the first exception of a handler."""
        self.stop()
        self._reserved.close()
        if self.crashes:
            raise self.crashes[0]

    def wait_for(self, condition: Callable[[], object], timeout: float = MAX_WAIT_S) -> None:
        """Wait until `condition()` is true; blocks the thread."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"condition not met after {timeout} s")
            time.sleep(0.002)

    async def until(self, condition: Callable[[], object], timeout: float = MAX_WAIT_S) -> None:  # noqa: ASYNC109 - as above
        await asyncio.to_thread(self.wait_for, condition, timeout)

    async def _serve(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self._accept, sock=listening)
        await self._stopping.enter()
        server.close()
        for _ in range(4):  # what is just being accepted, or closed, takes some more steps of the loop
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer, server=True)
        connection = asyncio.ensure_future(self._connected(wire))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        connection.add_done_callback(lambda _: wire.close())  # also if it was cancelled before it began

    async def _connected(self, wire: Wire) -> None:
        try:
            await self.converse(wire)
        except asyncio.CancelledError:
            wire.reset()
            raise
        except ConnectionError:
            wire.reset()
        except h11.RemoteProtocolError:
            pass  # the client disconnected within a message, or does not speak HTTP
        except Exception as crash:
            self.crashes.append(crash)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bound(port: int) -> socket.socket:
    # asyncio disables Nagle's algorithm (delays of 40 ms) only if the protocol is given.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
