"""The servers of the tests leave nothing open: else a later test fails with a ResourceWarning."""

import gc
import socket
import sys
from contextlib import ExitStack

import pytest

from tests.support.loopback import Loopback, Wire


class Reading(Loopback):
    async def converse(self, wire: Wire) -> None:
        await wire.message()


def test_connections_that_are_just_being_accepted_are_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    for _ in range(3):
        server = Reading()
        server.start()
        with ExitStack() as clients:
            for _ in range(40):
                client = clients.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", server.port))
            server.close()
        gc.collect()
    assert unraisable == []
