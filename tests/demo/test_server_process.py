from __future__ import annotations

import http.client
import os
import signal
import socket
import sys

import pytest

from abuseguard.demo.server import ServerOptions
from abuseguard.demo.server_process import PortError, ServerError, ServerProcess

OPTIONS = ServerOptions(limits=())


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_it_serves_until_it_is_stopped():
    with ServerProcess(OPTIONS) as server:
        assert server.alive
        assert get(server.port, "/healthz") == 200
    assert not server.alive
    assert server.exit_code == 0
    with pytest.raises(ConnectionRefusedError):
        get(server.port, "/healthz")
    server.stop()


def test_a_port_can_be_asked_for_and_is_free_again_after():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with ServerProcess(OPTIONS, port=port) as server:
            assert server.port == port
            assert get(port, "/healthz") == 200


def test_a_taken_port_is_an_error_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=f"port {port}: Address already in use"):
            ServerProcess(OPTIONS, port=port)
    with pytest.raises(PortError, match="port 70000"):
        ServerProcess(OPTIONS, port=70_000)


def test_a_server_that_cannot_be_built_says_why():
    with pytest.raises(ServerError, match=r"did not start: limits\[0\].*1000/fortnight"):
        ServerProcess(ServerOptions(limits=("1000/fortnight",))).__enter__()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_it_ignores_interrupts_and_shows_how_it_died():
    with ServerProcess(OPTIONS) as server:
        assert server.pid
        os.kill(server.pid, signal.SIGINT)
        assert get(server.port, "/healthz") == 200
        os.kill(server.pid, signal.SIGKILL)
        server._process.join(10)
        assert not server.alive
        assert server.exit_code == -signal.SIGKILL
