from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from abuseguard.clock import ManualClock
from abuseguard.decision import Outcome
from abuseguard.demo.log_time import POSITION_HEADER, TIME_HEADER, LogTime, note_decision


async def nothing():
    return {"type": "http.disconnect"}


class LoggedCalls:
    """Calls a LogTime by hand, to see when each request comes through to the application, and at what time."""

    def __init__(self):
        self.clock = ManualClock(5)
        self.log_time = LogTime(self._app, clock=self.clock)
        self.seen = []
        self.held = asyncio.Event()

    async def _app(self, scope, receive, send):
        self.seen.append((scope["path"], self.clock.now_ns()))
        if scope["path"] == "/held":
            await self.held.wait()
        if scope["path"] == "/broken":
            raise RuntimeError("broken")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def __call__(self, path, position, time, key=None):
        headers = [(POSITION_HEADER.encode(), position.encode()), (TIME_HEADER.encode(), time.encode())]
        if key:
            headers.append((b"authorization", key))

        async def send(message):
            pass

        await self.log_time({"type": "http", "path": path, "headers": headers}, nothing, send)


def test_requests_come_through_in_the_order_of_the_log_each_at_its_own_time():
    async def main():
        calls = LoggedCalls()
        await asyncio.gather(*(calls(f"/{n}", str(n), str(n * 1000)) for n in (3, 1, 4, 0, 2)))
        return calls.seen

    assert asyncio.run(main()) == [("/0", 5), ("/1", 1000), ("/2", 2000), ("/3", 3000), ("/4", 4000)]


def test_a_request_that_fails_passes_the_turn_on():
    async def main():
        calls = LoggedCalls()
        return await asyncio.gather(
            calls("/1", "1", "7"), calls("/broken", "0", "6"), return_exceptions=True
        ), calls.seen

    (answered, failed), seen = asyncio.run(main())
    assert answered is None
    assert isinstance(failed, RuntimeError)
    assert seen == [("/broken", 6), ("/1", 7)]


class GuardedCalls(LoggedCalls):
    """The same with something like a guard in front of the application, which decides before it answers."""

    async def _app(self, scope, receive, send):
        note_decision(SimpleNamespace(native=scope), SimpleNamespace(outcome=Outcome.ALLOWED))
        await super()._app(scope, receive, send)


def under_way_with(*keys):
    """What has come through while the first request is held, and after; the n-th request has the n-th key."""

    async def main():
        calls = GuardedCalls()
        tasks = [
            asyncio.ensure_future(calls("/held" if n == 0 else f"/{n}", str(n), str(10 + n), key))
            for n, key in enumerate(keys)
        ]
        for _ in range(20):
            await asyncio.sleep(0)
        meanwhile = list(calls.seen)
        calls.held.set()
        await asyncio.gather(*tasks)
        return meanwhile, calls.seen[len(meanwhile) :]

    return asyncio.run(main())


def test_the_turn_is_passed_on_at_the_decision_and_not_at_the_answer():
    assert under_way_with(b"one", b"other", None) == ([("/held", 10), ("/1", 11), ("/2", 12)], [])
    assert under_way_with(None, None) == ([("/held", 10), ("/1", 11)], [])


def test_a_request_waits_for_the_answer_to_the_last_one_with_its_key_and_those_behind_for_its_decision():
    assert under_way_with(b"one", b"other", b"one", b"other") == (
        [("/held", 10), ("/1", 11)],
        [("/2", 12), ("/3", 13)],
    )


@pytest.mark.parametrize("number", ["", "-1", "1.5", "\u0661\u0662", "9" * 1000, "now"])
def test_a_number_that_is_none_is_left_alone(number):
    async def main():
        calls = LoggedCalls()
        await calls("/", number, "7")
        await calls("/", "0", number)
        return calls.seen

    assert asyncio.run(main()) == [("/", 5), ("/", 5)]
