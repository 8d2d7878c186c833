"""A store that takes windows of the ``limits`` library along with token buckets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from abuseguard.buckets._window import Steps, Window, Windows, run
from abuseguard.buckets.breaker import CircuitBreaker
from abuseguard.buckets.redis import client_errors, clients_of, store_error
from abuseguard.buckets.store import Adjustment, Demand, Reply, Store
from abuseguard.buckets.window_name import WindowName
from abuseguard.buckets.window_storage import WindowStorage
from abuseguard.clock import Clock, SystemClock
from abuseguard.errors import StoreError
from abuseguard.identity import keyed_hash

Result = TypeVar("Result")


class WindowSteps:
    """What a step is made of where windows take part, be the store blocking or not; see ``WindowedStore``.

    Args:
        store: takes the buckets.
        clock: times the circuit breaker.
    """

    def __init__(self, store: Any, clock: Clock) -> None:
        self._store = store
        self.breaker = CircuitBreaker(clock)

    def take(self, windows: Windows, account: str, demands: Sequence[Demand]) -> Steps[Reply]:
        """Takes all or none."""
        times_to_full_ns: list[int | None] = [None] * len(demands)
        asked: list[tuple[int, Window, int]] = []
        buckets: list[tuple[int, Demand]] = []
        allowed = True
        self.breaker.enter()
        with self._asking(windows):
            for position, demand in enumerate(demands):
                name = demand.bucket
                if not isinstance(name, WindowName):
                    buckets.append((position, demand))
                    continue
                window, cost = windows.window(name, demand.key or account), demand.cost_ns // name.interval_ns
                used = yield from window.used()
                times_to_full_ns[position] = used * name.interval_ns
                asked.append((position, window, cost))
                if used + cost > window.amount:
                    allowed = False
                    if cost <= window.amount:
                        times_to_full_ns[position] = yield from _denied_ns(window, cost, name.interval_ns)
        if not allowed:
            return Reply(False, times_to_full_ns)
        if buckets:
            reply = yield self._store.take(account, [demand for _, demand in buckets])
            for (position, _), time_to_full_ns in zip(buckets, reply.times_to_full_ns, strict=True):
                times_to_full_ns[position] = time_to_full_ns
            if not reply.allowed:
                return Reply(False, times_to_full_ns)
        with self._asking(windows):
            for index, (position, window, cost) in enumerate(asked):
                if cost and not (yield from window.hit(cost)):
                    # Somebody else was faster since the window was read.
                    interval_ns = demands[position].cost_ns // cost
                    times_to_full_ns[position] = yield from _denied_ns(window, cost, interval_ns)
                    for _, earlier, earlier_cost in asked[:index]:
                        if earlier_cost:
                            yield from earlier.give_back(earlier_cost)
                    allowed = False
                    break
        if not allowed:
            yield from self._give_back(account, buckets, times_to_full_ns)
            return Reply(False, times_to_full_ns)
        for position, _, _ in asked:
            times_to_full_ns[position] = (times_to_full_ns[position] or 0) + demands[position].cost_ns
        return Reply(True, times_to_full_ns)

    def _give_back(
        self, account: str, buckets: list[tuple[int, Demand]], times_to_full_ns: list[int | None]
    ) -> Steps[None]:
        taken = [
            Adjustment(demand.bucket, -demand.cost_ns, demand.capacity_ns, demand.key)
            for _, demand in buckets
            if demand.cost_ns
        ]
        if taken:
            yield self._store.adjust(account, taken)
        for position, demand in buckets:
            times_to_full_ns[position] = max(0, (times_to_full_ns[position] or 0) - demand.cost_ns)

    def adjust(self, windows: Windows, account: str, adjustments: Sequence[Adjustment]) -> Steps[None]:
        """Corrects buckets and windows."""
        buckets = [adjustment for adjustment in adjustments if not isinstance(adjustment.bucket, WindowName)]
        if buckets:
            yield self._store.adjust(account, buckets)
        self.breaker.enter()
        with self._asking(windows):
            for adjustment in adjustments:
                name = adjustment.bucket
                if isinstance(name, WindowName):
                    window = windows.window(name, adjustment.key or account)
                    amount = abs(adjustment.delta_ns) // name.interval_ns
                    if amount:
                        yield from (window.charge if adjustment.delta_ns > 0 else window.give_back)(amount)

    def clear(self, windows: Windows, account: str, buckets: Sequence[str]) -> Steps[None]:
        """Forgets buckets and windows."""
        yield self._store.clear(account, [bucket for bucket in buckets if not isinstance(bucket, WindowName)])
        self.breaker.enter()
        with self._asking(windows):
            for name in buckets:
                if isinstance(name, WindowName):
                    yield from windows.window(name, account).clear()

    @contextlib.contextmanager
    def connecting(self) -> Iterator[None]:
        """Spares a storage that cannot be connected to, as one that cannot be asked."""
        self.breaker.enter()
        try:
            yield
        except StoreError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()

    @contextlib.contextmanager
    def _asking(self, windows: Windows) -> Iterator[None]:
        """Turns what a storage raises into what a store does."""
        if isinstance(windows.storage, WindowStorage):
            yield
            return
        try:
            yield
        except client_errors(windows.storage) as error:
            self.breaker.failed()
            raise store_error(error) from error
        self.breaker.succeeded()


class WindowedStore:
    """Takes limits that are windows on a storage of ``limits``, all others from a store, all of them or none.

    The windows are read, then the buckets are taken, then the windows are hit. In memory nothing can come in between.
    On Redis another process can, so that a window turns out full after all: then what was taken is given back, and for
    that moment others may have been denied by it. A step that fails half-way leaves what it took until then.

    A window has no burst and cannot be emptied ahead of time, so a request is never delayed for it. Corrections: what
    is given back to a sliding window counter counts only as far as it was taken in the current window. A moving window
    keeps an entry in Redis for each unit of cost: for limits in tokens, take a sliding window counter.

    Args:
        store: keeps the buckets.
        storage: gives the storage of the windows, a ``WindowStorage`` or a Redis storage of ``limits`` that blocks; is
            called when it is first needed, until it succeeds.
        secret: keys the hashes that stand for accounts in Redis.
        clock: times the circuit breaker; windows go by the clock of their storage.
    """

    def __init__(
        self, store: Store, storage: Callable[[], Any], *, secret: bytes = b"", clock: Clock | None = None
    ) -> None:
        self._store = store
        self._storage = storage
        self._secret = secret
        self._steps = WindowSteps(store, clock or SystemClock())
        self._windows: Windows | None = None
        self._lock = threading.Lock()
        self._take_buckets = store.take
        self._without_windows: Sequence[Demand] = ()

    def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        if demands is self._without_windows:
            return self._take_buckets(account, demands)
        if not has_window(demands):
            # Most requests ask the same: their demands are one tuple, which need not be looked through again.
            if isinstance(demands, tuple):
                self._without_windows = demands
            return self._take_buckets(account, demands)
        return self._run(lambda windows: self._steps.take(windows, account, demands))

    def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        if not has_window(adjustments):
            self._store.adjust(account, adjustments)
        else:
            self._run(lambda windows: self._steps.adjust(windows, account, adjustments))

    def clear(self, account: str, buckets: Sequence[str]) -> None:
        if not any(isinstance(bucket, WindowName) for bucket in buckets):
            self._store.clear(account, buckets)
        else:
            self._run(lambda windows: self._steps.clear(windows, account, buckets))

    def close(self) -> None:
        self._store.close()
        windows, self._windows = self._windows, None
        # The store closes the connections they share, but does not know of them before it has used them itself.
        if windows is not None and not isinstance(windows.storage, WindowStorage):
            for client in clients_of(windows.storage):
                with contextlib.suppress(*client_errors(windows.storage)):
                    client.close()

    def _connected(self) -> Windows:
        if self._windows is None:
            with self._steps.connecting():
                self._windows = windows_on(self._storage(), self._secret)
        return self._windows

    def _run(self, steps: Callable[[Windows], Steps[Result]]) -> Result:
        windows = self._connected()
        if not isinstance(windows.storage, WindowStorage):
            return run(steps(windows))
        with self._lock:
            return run(steps(windows))


def windows_on(storage: Any, secret: bytes) -> Windows:
    """The windows on a storage; in Redis, keys hold no account in clear, and those of an account are in one slot."""
    if isinstance(storage, WindowStorage):
        return Windows(storage, str)
    return Windows(storage, lambda owner: f"{{{keyed_hash(owner, secret)}}}")


def has_window(parts: Sequence[Demand] | Sequence[Adjustment]) -> bool:
    """Whether any part of a step is a window's."""
    for part in parts:  # noqa: SIM110 - `any` would cost more than all that it saves
        if isinstance(part[0], WindowName):
            return True
    return False


def _denied_ns(window: Window, cost: int, interval_ns: int) -> Steps[int]:
    """The time to full by which a bucket of the window's amount would have to wait just as long."""
    wait_ns = yield from window.wait_ns(cost)
    return wait_ns + (window.amount - cost) * interval_ns
