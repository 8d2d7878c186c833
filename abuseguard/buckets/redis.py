"""Buckets in Redis or Valkey, single, Cluster or behind Sentinel, through the storages of the ``limits`` library.

One EVALSHA a decision takes all of a request's buckets. A bucket that is full has no key, and every key expires when
its bucket is full. Keys hold no account in clear: ``PREFIX:{HASH OF THE ACCOUNT}:LIMIT``; the braces put all buckets
of an account into one slot of a cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any

from abuseguard.buckets.breaker import CircuitBreaker
from abuseguard.buckets.denied import DeniedKeys
from abuseguard.buckets.store import Adjustment, Demand, Reply
from abuseguard.clock import Clock, SystemClock
from abuseguard.errors import StoreError, StoreTimeoutError
from abuseguard.identity import keyed_hash


class Script:
    """A Lua script of this package.

    Args:
        name: its file.
    """

    __slots__ = ("sha", "text")

    def __init__(self, name: str) -> None:
        self.text = files("abuseguard.buckets").joinpath(name).read_bytes()
        # What Redis calls it, by its own definition of EVALSHA; no security rests on it.
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


TAKE = Script("take.lua")
ADJUST = Script("adjust.lua")

Command = tuple[Any, ...]
# The keys and the arguments of one request's part of the script `take`.
Step = tuple[list[str], list[int]]


class RedisCommands:
    """What to say to Redis and how to read its answers: everything but the saying.

    Args:
        key_prefix: what every key begins with.
        secret: keys the hashes of accounts.
    """

    __slots__ = ("_prefix", "_secret")

    def __init__(self, key_prefix: str, secret: bytes) -> None:
        self._prefix = key_prefix
        self._secret = secret

    def key(self, bucket: str, owner: str) -> str:
        """The key of one bucket."""
        return f"{self._prefix}:{{{keyed_hash(owner, self._secret)}}}:{bucket}"

    def step(self, account: str, demands: Sequence[Demand]) -> Step:
        """The keys and arguments of one step of the script ``take``."""
        tag = f"{self._prefix}:{{{keyed_hash(account, self._secret)}}}:"
        keys = []
        arguments = [len(demands)]
        for bucket, cost_ns, capacity_ns, key in demands:
            keys.append(tag + bucket if key is None else self.key(bucket, key))
            arguments.append(cost_ns)
            arguments.append(capacity_ns)
        return keys, arguments

    @staticmethod
    def take(steps: Sequence[Step]) -> Command:
        """The command that takes these steps, one after the other."""
        if len(steps) == 1:
            keys, arguments = steps[0]
        else:
            keys = [key for step in steps for key in step[0]]
            arguments = [argument for step in steps for argument in step[1]]
        return ("EVALSHA", TAKE.sha, len(keys), *keys, *arguments)

    def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> Command:
        """The command that corrects these buckets."""
        keys = [self.key(adjustment.bucket, adjustment.key or account) for adjustment in adjustments]
        return ("EVALSHA", ADJUST.sha, len(keys), *keys, *(adjustment.delta_ns for adjustment in adjustments))

    @staticmethod
    def reply(answer: bytes | str) -> Reply:
        """What the script ``take`` answered to one step."""
        allowed, *times_to_full_ns = answer.split()
        return Reply(int(allowed) == 1, list(map(int, times_to_full_ns)))


def store_error(error: Exception) -> StoreError:
    """A client's exception as one of ours."""
    kind = StoreTimeoutError if "imeout" in type(error).__name__ else StoreError
    return kind(f"{type(error).__name__}: {error}")


class RedisStore:
    """Keeps buckets in Redis for callers that may block.

    Args:
        connect: makes a Redis storage of the ``limits`` library; called until it succeeds, then no more.
        key_prefix: what every key begins with.
        secret: keys the hashes of accounts.
        clock: times the denied accounts and the circuit breaker; the buckets go by Redis's own time.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        key_prefix: str = "abuseguard",
        secret: bytes = b"",
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._connect = connect
        self._connecting = threading.Lock()
        self._storage: Any = None
        self._client: Any = None
        self._errors: tuple[type[Exception], ...] = (OSError,)
        self._commands = RedisCommands(key_prefix, secret)
        self._denied = DeniedKeys(clock)
        self.breaker = CircuitBreaker(clock)

    def connect(self) -> None:
        """Makes the client, if there is none yet.

        Raises:
            StoreError: the server cannot be reached, which only clients of a cluster notice here.
        """
        with self._connecting:
            if self._client is None:
                self._storage = self._connect()
                self._errors = client_errors(self._storage)
                self._client = self._storage.get_connection()

    def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        known = self._denied.answer(account, demands)
        if known is not None:
            return known
        reply = self._commands.reply(self._run(self._commands.take([self._commands.step(account, demands)]), TAKE))
        if not reply.allowed:
            self._denied.note(account, demands, reply)
        return reply

    def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        self._run(self._commands.adjust(account, adjustments), ADJUST)
        self._denied.forget(account, [(adjustment.bucket, adjustment.key) for adjustment in adjustments])

    def clear(self, account: str, buckets: Sequence[str]) -> None:
        if buckets:
            self._run(("DEL", *(self._commands.key(bucket, account) for bucket in buckets)), None)
            self._denied.forget(account, [(bucket, None) for bucket in buckets])

    def close(self) -> None:
        for client in clients_of(self._storage):
            with contextlib.suppress(*self._errors):
                client.close()

    def _run(self, command: Command, script: Script | None) -> Any:
        self.breaker.enter()
        if self._client is None:
            try:
                self.connect()
            except StoreError:
                self.breaker.failed()
                raise
        try:
            try:
                answer = self._client.execute_command(*command)
            except self._errors as error:
                if script is None or not is_no_script(error):
                    raise
                # A server that was restarted, or a replica that took over, does not know our scripts.
                self._client.script_load(script.text)
                answer = self._client.execute_command(*command)
        except self._errors as error:
            self.breaker.failed()
            raise store_error(error) from error
        self.breaker.succeeded()
        return answer


def is_no_script(error: object) -> bool:
    """Whether Redis answered that it does not know a script, in any client library."""
    return type(error).__name__ == "NoScriptError"


def clients_of(holder: Any) -> list[Any]:
    """Every client that a storage, or the bridge of an asynchronous one, has opened: all are to be closed."""
    sentinel = getattr(holder, "sentinel", None)
    clients = [getattr(holder, name, None) for name in ("storage", "storage_slave", "storage_replica")]
    return [client for client in (*clients, *getattr(sentinel, "sentinels", ())) if client is not None]


def library_errors(exceptions: Any) -> tuple[type[Exception], ...]:
    """What the library whose module of exceptions this is raises; its cluster's error is no kind of its other ones."""
    names = ("RedisError", "RedisClusterException", "ValkeyError", "ValkeyClusterException")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def client_errors(storage: Any) -> tuple[type[Exception], ...]:
    """What a storage's client raises when the server cannot be asked, or does not do as it is told."""
    return (*library_errors(import_module(f"{storage.target_server}.exceptions")), OSError)
