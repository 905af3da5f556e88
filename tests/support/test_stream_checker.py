"""The checker in front of the clients' app notices a stream that breaks the rules."""

from contextlib import nullcontext

import httpx
import pytest

from tests.support.proxy import Answer, Match, TcpProxy
from tests.support.stream_checker import StreamChecker

STREAM = (("Content-Type", "text/event-stream"),)
BEGUN = b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'


@pytest.mark.parametrize(("path", "noticed"), [("responses", True), ("chat/completions", False)])
def test_unfinished_stream_is_noticed(path: str, noticed: bool) -> None:
    with TcpProxy(0) as target:
        target.on(Match(), Answer(200, BEGUN, STREAM))
        with pytest.raises(AssertionError) if noticed else nullcontext(), StreamChecker(target.port) as checker:
            httpx.post(f"{checker.endpoint}/openai/v1/{path}", trust_env=False)
            checker.wait_for(lambda: not checker.busy)
