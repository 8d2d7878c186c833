"""Real servers with a real Redis: gunicorn's workers, and Django on an event loop."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import http_sf
import pytest

from tests.redis_servers import HOST, RedisServer, free_ports, wait_until

APPLICATIONS = "tests.integration.web_applications"
REPOSITORY = Path(__file__).parents[2]
# How long any one answer may take: far longer than any takes, far shorter than to wait for a store that is silent.
PATIENCE_SECONDS = 10
REQUESTS = 25
TOKENS = 100_000
PROMPT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50_000}


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def remaining(self) -> dict[str, int]:
        return {name: state["r"] for name, state in http_sf.parse(self.headers["RateLimit"].encode(), tltype="list")}


class Server:
    """One server process, with its workers.

    Args:
        command: the program and its arguments, in which ``{port}`` stands for the port.
        environment: variables besides those of this process.
        log: where it writes.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        (self.port,) = free_ports()
        self.log = log
        paths = os.pathsep.join(map(str, [REPOSITORY, REPOSITORY / "adapters"]))
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(part.format(port=self.port) for part in command)],
                env={**os.environ, "PYTHONPATH": paths, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                start_new_session=True,
            )

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.request("GET", "/open?started").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def start(
        self, method: str, path: str, account: str = "", body: object = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A response whose body is still to be read."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_SECONDS)
        headers = {"X-Account": account, "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection, connection.getresponse()

    def request(self, *arguments: object, **further: object) -> Answer:
        connection, response = self.start(*arguments, **further)
        with closing(connection), response:
            return Answer(response.status, response.headers, response.read())

    def left(self, account: str) -> int:
        """The tokens that the account has left."""
        return self.request("GET", "/llm/left", account).remaining["tokens"]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A server that these tests may kill."""
    with RedisServer() as server:
        yield server


GUNICORN = ["gunicorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning", "--graceful-timeout", "1"]
SERVERS = {
    "bare-sync": [*GUNICORN, "--workers", "2", f"{APPLICATIONS}:bare()"],
    "bare-gthread": [
        *GUNICORN,
        "--workers",
        "2",
        "--threads",
        "4",
        "--worker-connections",
        "5",
        f"{APPLICATIONS}:bare()",
    ],
    "flask": [*GUNICORN, "--workers", "2", f"{APPLICATIONS}:flask()"],
    "django": [*GUNICORN, "--workers", "2", f"{APPLICATIONS}:django_wsgi()"],
    "django-asgi": [
        *("uvicorn", "--host", HOST, "--port", "{port}", "--log-level", "warning", "--lifespan", "off"),
        *("--factory", f"{APPLICATIONS}:django_asgi"),
    ],
}


@contextmanager
def started(name: str, redis: RedisServer, directory: Path, **settings: str) -> Iterator[Server]:
    for package in (SERVERS[name][0], *(framework for framework in ("flask", "django") if name.startswith(framework))):
        import_module(package)  # so that what was left out on purpose is skipped
    environment = {
        "ABUSEGUARD_ACCOUNT": "header:x-account",
        "ABUSEGUARD_KEY_PREFIX": name,
        "ABUSEGUARD_LIMITS": f"{REQUESTS}/day routes=/ name=requests; "
        f"{TOKENS}/day unit=tokens routes=/llm/* name=tokens",
        "ABUSEGUARD_STORE": redis.url,
        "TEST_GATES": str(directory),
        **settings,
    }
    redis.flush()
    server = Server(SERVERS[name], environment, directory / "log")
    try:
        wait_until(server.answers, f"{name}: {server.log}")
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    # What is too slow is let in uncounted; a busy machine is not what is tested here.
    with started(
        request.param, redis, tmp_path_factory.mktemp("server"), ABUSEGUARD_STORE_TIMEOUT_SECONDS="1"
    ) as server:
        yield server


@pytest.fixture
def account() -> str:
    return uuid.uuid4().hex


def test_processes_share_one_limit_exactly(server):
    processes = 2 if "--workers" in server.process.args else 1
    for _ in range(20):
        account = uuid.uuid4().hex
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda _, account=account: server.request("GET", "/", account), range(3 * REQUESTS))
            )
        allowed = [answer for answer in answers if answer.status == 200]
        assert sorted({answer.status for answer in answers}) == [200, 429]
        assert len(allowed) == REQUESTS
        assert sorted(answer.remaining["requests"] for answer in allowed) == list(range(REQUESTS))
        denied = next(answer for answer in answers if answer.status == 429)
        assert json.loads(denied.body)["violated-policies"] == ["requests"]
        # The system hands out connections as it likes, but not always to one alone.
        if len({answer.body for answer in allowed}) == processes:
            break
    else:
        pytest.fail("one worker answered everything")


def test_tokens_are_settled(server, account):
    answer = server.request("POST", "/llm/chat", account, PROMPT)
    assert (answer.status, json.loads(answer.body)["usage"]["completion_tokens"]) == (200, 30)
    assert answer.remaining["tokens"] <= TOKENS - PROMPT["max_tokens"]
    wait_until(lambda: server.left(account) == TOKENS - 50, "the settlement")


def test_a_stream_arrives_as_it_is_made(server, account):
    connection, response = server.start("POST", f"/llm/stream?{account}", account, PROMPT)
    with closing(connection), response:
        assert response.readline().startswith(b"data: ")
        # What comes next is not made before this.
        assert server.left(account) <= TOKENS - PROMPT["max_tokens"]
        server.request("GET", f"/open?{account}")
        assert b'"usage"' in response.read()
    wait_until(lambda: server.left(account) == TOKENS - 7, "the settlement")


def test_a_disconnect_in_a_stream_is_settled(server, account):
    connection, response = server.start("POST", "/llm/endless", account, PROMPT)
    for _ in range(4):
        response.readline()
    response.close()
    connection.close()
    wait_until(lambda: server.left(account) > TOKENS - PROMPT["max_tokens"], "the settlement")
    assert server.left(account) < TOKENS


def test_a_store_that_is_killed_fails_no_request_and_is_taken_up_again(server, redis, account):
    assert server.request("GET", "/", account).status == 200
    redis.kill()
    try:
        answers = [server.request("GET", "/", account) for _ in range(2 * REQUESTS)]
        answers += [server.request("POST", "/llm/chat", account, PROMPT) for _ in range(4)]
    finally:
        redis.restart()
    assert [(answer.status, answer.headers["RateLimit"]) for answer in answers] == [(200, None)] * len(answers)
    wait_until(lambda: server.request("GET", "/", account).headers["RateLimit"] is not None, "the store")
    wait_until(lambda: server.request("GET", "/", account).status == 429, "the limit")


@pytest.mark.parametrize("name", ["bare-sync", "django-asgi"])
def test_a_store_that_is_silent_holds_up_no_request_for_long(name, redis, account, tmp_path):
    with started(name, redis, tmp_path) as server:
        redis.stop_answering()
        try:
            answers = [server.request("GET", "/", account) for _ in range(2 * REQUESTS)]
        finally:
            redis.resume()
        assert [answer.status for answer in answers] == [200] * len(answers)
        wait_until(lambda: server.request("GET", "/llm/left", account).headers["RateLimit"] is not None, "the store")
