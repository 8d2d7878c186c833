from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.redis_servers import RedisServer, wait_until

redis = pytest.importorskip("redis")

pytestmark = pytest.mark.usefixtures("_redis_program")


@pytest.fixture
def server():
    with RedisServer() as server:
        yield server


def test_a_server_serves(server):
    with server.client() as client:
        assert client.set("key", "value")
        assert client.get("key") == b"value"


def test_a_server_keeps_nothing_on_disk(server):
    with server.client() as client:
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "no"


def test_a_killed_server_refuses_connections_and_leaves_no_process(server):
    pid = server.pid
    server.kill()
    assert not server.is_running
    with server.client() as client, pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_restarted_server_is_empty_and_has_the_same_address(server):
    url = server.url
    with server.client() as client:
        client.set("key", "value")
        digest = client.script_load("return 1")
    server.kill()
    server.restart()
    assert server.url == url
    with server.client() as client:
        assert client.get("key") is None
        with pytest.raises(redis.exceptions.NoScriptError):
            client.evalsha(digest, 0)


def test_a_server_that_runs_can_be_restarted(server):
    pid = server.pid
    server.restart()
    assert server.pid != pid
    with server.client() as client:
        assert client.ping()


def test_a_stopped_server_accepts_and_does_not_answer_until_it_is_resumed(server):
    server.stop_answering()
    with redis.Redis(port=server.port, socket_timeout=0.05, retry=None) as client, pytest.raises(redis.TimeoutError):
        client.ping()
    server.resume()
    with server.client() as client:
        assert client.ping()


def test_a_stopped_server_can_be_killed(server):
    server.stop_answering()
    server.kill()
    assert not server.is_running


def test_flush_brings_back_what_is_dead_or_silent(server):
    for harm in (server.kill, server.stop_answering):
        with server.client() as client:
            client.set("key", "value")
        harm()
        server.flush()
        with server.client() as client:
            assert client.dbsize() == 0


def test_a_password_is_asked_for():
    with RedisServer(password="correct horse") as server:
        with server.client() as client:
            assert client.ping()
        with redis.Redis(port=server.port, retry=None) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_unix_socket_reaches_the_same_server(server):
    with server.client() as client, redis.Redis.from_url(server.unix_url) as local:
        client.set("key", "value")
        assert local.get("key") == b"value"


def test_options_reach_the_server_and_can_be_replaced_at_a_restart():
    with RedisServer(maxmemory="3mb", hz=50) as server:
        with server.client() as client:
            assert client.config_get("maxmemory")["maxmemory"] == str(3 * 2**20)
        server.restart(maxmemory=None, hz=20)
        with server.client() as client:
            assert client.config_get("maxmemory")["maxmemory"] == "0"
            assert client.config_get("hz")["hz"] == "20"


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(OSError, match="no-such-option"), RedisServer(no_such_option="1"):
        pass


def test_the_directory_goes_with_the_server():
    with RedisServer() as server:
        directory = server.unix_socket.parent
        assert directory.is_dir()
    assert not directory.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_the_process_that_started_it(end):
    program = """if True:
        import sys
        from tests.redis_servers import RedisServer
        with RedisServer() as server:
            print(server.pid, server.unix_socket, flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        pid, socket_path = starter.stdout.readline().split()
        assert _exists(int(pid))
        starter.send_signal(end)
    wait_until(lambda: not _exists(int(pid)), "the end of the server")
    wait_until(lambda: not Path(socket_path).parent.exists(), "the removal of its directory")


def _exists(pid: int) -> bool:
    try:
        # A zombie waits for init and is no process any more.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_tls_asks_for_the_right_authority(redis_tls_server):
    assert redis_tls_server.url.startswith("rediss://")
    with redis_tls_server.client() as client:
        assert client.ping()
    with (
        redis.Redis(port=redis_tls_server.port, ssl=True, password="correct horse", retry=None) as client,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.ping()
    with redis.Redis(port=redis_tls_server.port, retry=None) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_tls_outlives_a_restart_of_the_server_behind_it():
    with RedisServer(tls=True) as server:
        server.kill()
        with server.client() as client, pytest.raises(redis.ConnectionError):
            client.ping()
        server.restart()
        with server.client() as client:
            assert client.ping()


def test_every_node_of_a_cluster_serves_its_slots(redis_cluster):
    assert redis_cluster.url.count(",") == 2
    with redis_cluster.client() as client:
        for number in range(30):
            client.set(f"key{number}", number)
    for node in redis_cluster.nodes:
        with node.client() as client:
            assert client.dbsize() > 0


def test_a_cluster_tells_keys_of_two_slots_apart(redis_cluster):
    with redis_cluster.nodes[0].client() as client, pytest.raises(redis.ResponseError, match="hash to the same slot"):
        client.mget("a", "b")


def test_a_cluster_comes_back_from_the_death_of_a_node(redis_cluster):
    redis_cluster.nodes[1].kill()
    redis_cluster.flush()
    with redis_cluster.client() as client:
        for number in range(30):
            assert client.set(f"key{number}", number)


def test_a_sentinel_names_the_master(redis_sentinel):
    with redis_sentinel.client() as client:
        assert client.set("key", "value")
    with redis_sentinel.master.client() as client:
        assert client.get("key") == b"value"


def test_a_sentinel_fails_over_and_back(redis_sentinel):
    first = redis_sentinel.master
    redis_sentinel.fail_over()
    second = redis_sentinel.master
    assert second is not first
    assert first.is_running
    with redis_sentinel.client() as client:
        assert client.set("key", "value")
    redis_sentinel.fail_over()
    assert redis_sentinel.master is first
    with redis_sentinel.client() as client:
        assert client.set("key", "value")


@pytest.mark.parametrize("kind", ["redis", "redis_tls", "redis_cluster", "redis_sentinel"])
@pytest.mark.parametrize("repeat", range(2))
def test_each_url_leads_to_an_empty_store(kind, repeat, request):
    request.getfixturevalue(f"{kind}_url")
    servers = request.getfixturevalue("redis_server" if kind == "redis" else kind.replace("_tls", "_tls_server"))
    with servers.client() as client:
        assert client.dbsize() == 0
        client.set("key", "value")
