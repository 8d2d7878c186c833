"""Real servers, in processes of their own, driven over real connections."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import http_sf
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.redis_servers import HOST, free_ports, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
APPLICATION = "tests.integration.asgi_app:app"
UVICORN = ["uvicorn", APPLICATION, "--host", HOST, "--log-level", "warning", "--port"]
COMMANDS = {
    "uvicorn-h11": [*UVICORN, "{port}", "--http", "h11", "--loop", "asyncio"],
    "uvicorn-httptools": [*UVICORN, "{port}", "--http", "httptools", "--loop", "uvloop"],
    "hypercorn": ["hypercorn", APPLICATION, "--bind", HOST + ":{port}", "--log-level", "warning"],
    "daphne": ["daphne", APPLICATION, "-b", HOST, "-p", "{port}", "-v", "0"],
}
SETTINGS = {
    "ABUSEGUARD_ACCOUNT": "header:x-user",
    "ABUSEGUARD_LIMITS": "10/hour name=all; 1000/day unit=tokens name=tokens; 3/hour unit=messages name=messages",
    "ABUSEGUARD_EXEMPT_PATHS": "/stream/*",
}
CHAT = {"messages": [{"role": "user", "content": "Count, and never stop."}], "max_tokens": 900}
_numbers = itertools.count()


class Server:
    """One server's process, and its children's."""

    def __init__(self, command, directory, **environment):
        (self.port,) = free_ports()
        self.url = f"http://{HOST}:{self.port}"
        self.log = directory / f"{command[0]}-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(part.format(port=self.port) for part in command)],
                env={
                    # The tests have variables of their own, which are no settings.
                    **{name: value for name, value in os.environ.items() if not name.startswith("ABUSEGUARD_")},
                    **SETTINGS,
                    **environment,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, self.port)).close()
            return True
        return False

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """All servers, started at once: most of their time is importing."""
    directory = tmp_path_factory.mktemp("servers")
    started = {name: Server(command, directory) for name, command in COMMANDS.items()}
    try:
        for name, server in started.items():
            wait_until(server.answers, name, seconds=60)
        yield started
    finally:
        for server in started.values():
            server.stop()


@pytest.fixture(params=COMMANDS)
def server(request, servers):
    return servers[request.param]


@pytest.fixture
def user():
    """A user of one's own, and so with full buckets."""
    return {"x-user": f"user-{next(_numbers)}"}


@pytest.fixture
def client(server, user):
    with httpx.Client(base_url=server.url, headers=user, timeout=20) as client:
        yield client


def left(response, limit):
    state = dict(http_sf.parse(response.headers["ratelimit"].encode(), tltype="list"))
    return state[limit]["r"]


def test_limits_and_connections_that_are_kept(client):
    ports = set()
    for remaining in range(9, -1, -1):
        response = client.get("/")
        assert response.status_code == 200
        assert left(response, "all") == remaining
        ports.add(response.json()["port"])
    assert len(ports) == 1
    response = client.get("/")
    assert response.status_code == 429
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["violated-policies"] == ["all"]
    assert 360 <= int(response.headers["retry-after"]) <= 400
    assert left(response, "all") == 0
    # What follows on the same connection is not misread: no body comes after a HEAD, nor is one left of a POST.
    head = client.head("/")
    assert (head.status_code, head.content) == (429, b"")
    assert int(head.headers["content-length"]) == len(response.content)
    assert client.post("/", content=b"x" * 1_000_000).status_code == 429
    assert client.get("/").json()["status"] == 429
    other = client.get("/", headers={"x-user": client.headers["x-user"] + "-other"})
    assert left(other, "all") == 9


def test_a_limit_of_a_route(client):
    assert client.get("/once").status_code == 200
    response = client.get("/once")
    assert response.status_code == 429
    assert response.json()["violated-policies"][0].startswith("1-per-hour-GET-once-")
    assert left(client.get("/"), "all") == 8


def test_bodies_come_through_whole(client):
    body = os.urandom(3_000_000)
    assert client.post("/", content=body).content == body
    # These are read for an estimate first: one that is above any limit, and one that needs no tokens, in many pieces.
    headers = {"content-type": "application/json"}
    prompt = b'{"prompt": "' + b"x" * 60_000 + b'"}'
    assert client.post("/", content=prompt, headers=headers).json()["violated-policies"] == ["tokens"]
    other = b'{"name": "' + b"x" * 60_000 + b'"}'
    pieces = [other[start : start + 7000] for start in range(0, len(other), 7000)]
    headers["content-length"] = str(len(other))
    assert client.post("/", content=iter(pieces), headers=headers).content == other


def test_a_stream_arrives_event_by_event(client, user):
    """The second event is made only when the client, which has the first, asks for it."""
    path = f"/stream/{user['x-user']}"
    with client.stream("GET", path) as response:
        received = b""
        for number, chunk in enumerate(response.iter_bytes()):
            received += chunk
            assert chunk == b"data: %d\n\n" % number
            client.post(path).raise_for_status()
    assert received.count(b"data:") == 3


def test_a_client_that_leaves_pays_for_what_it_got(client):
    with client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        events = response.iter_bytes()
        for _ in range(3):
            next(events)
        assert left(response, "tokens") < 100

    def tokens():
        # Costs nothing but a request, of which there are ten.
        time.sleep(0.2)
        return left(client.get("/"), "tokens")

    wait_until(lambda: tokens() > 500, "the settlement")
    assert tokens() < 1000 - 3


def test_many_at_once(client):
    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(lambda _: client.get("/").status_code, range(40)))
    assert sorted(found) == [200] * 10 + [429] * 30


def test_websockets(server, user, request):
    says_little = "daphne" in request.node.name  # it passes on neither headers of an accepted handshake nor a response
    url = f"ws://{HOST}:{server.port}/ws"
    with connect(url, additional_headers=user) as websocket:
        assert says_little or left(websocket.response, "all") == 9
        for word in "abc":
            websocket.send(word)
            assert websocket.recv(timeout=20) == word
        websocket.send("d")
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=20)
        # Autobahn, on which daphne is built, lets nobody send a registered code but 1000.
        assert closed.value.rcvd.code == (1011 if says_little else 1013)
    with httpx.Client(base_url=server.url, headers=user, timeout=20) as client:
        for _ in range(9):
            assert client.get("/").status_code == 200
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers=user)
    response = refused.value.response
    assert response.status_code == (403 if says_little else 429)
    assert says_little or response.headers["content-type"] == "application/problem+json"


def test_processes_that_share_a_redis_share_their_limits(redis_url, tmp_path):
    # A worker that is slow to be scheduled must not take Redis for dead.
    server = Server(
        [*UVICORN, "{port}", "--workers", "2"],
        tmp_path,
        ABUSEGUARD_STORE=redis_url,
        ABUSEGUARD_STORE_TIMEOUT_SECONDS="20",
        ABUSEGUARD_LIMITS="50/hour",
    )
    try:
        wait_until(server.answers, "uvicorn with two workers", seconds=60)
        processes = set()

        def ask(user):
            response = client.get("/", headers={"x-user": user})
            if response.status_code == 200:
                processes.add(response.json()["process"])
            return response.status_code

        def both_workers_answer():
            ask("somebody else")
            return len(processes) == 2

        # A connection for each request, so that both workers get some.
        with (
            httpx.Client(base_url=server.url, headers={"connection": "close"}, timeout=20) as client,
            ThreadPoolExecutor(20) as threads,
        ):
            found = list(threads.map(ask, ["ada"] * 120))
            assert sorted(found) == [200] * 50 + [429] * 70
            wait_until(both_workers_answer, "an answer of each worker")
    finally:
        server.stop()
