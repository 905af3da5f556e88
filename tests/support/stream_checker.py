"""A proxy in front of the app that checks the streams of openai/v1/responses which clients receive."""

import h11

from tests.support.loopback import Message
from tests.support.proxy import RecordedRequest, TcpProxy
from tests.support.response_streams import checked


class StreamChecker(TcpProxy):
    """`close` raises the first violation. `streams` counts the streams that were checked."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.streams = 0

    def relayed(self, request: RecordedRequest, answer: Message) -> None:
        assert isinstance(answer.head, h11.Response)
        streamed = dict(answer.head.headers).get(b"content-type", b"").startswith(b"text/event-stream")
        if streamed and request.path.partition("?")[0].endswith("/responses"):
            checked(answer.body.decode())
            self.streams += 1
