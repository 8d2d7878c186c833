"""Redis as it really behaves: what it holds, what it is asked, and what happens when it fails."""

from __future__ import annotations

import asyncio
import re
import threading
import time

import pytest

from abuseguard import Limit, Outcome, RequestFacts, Settings, SettingsError, StoreError
from abuseguard.buckets.breaker import StoreUnavailableError
from abuseguard.buckets.connect import async_store_for, store_for
from abuseguard.buckets.store import Adjustment, Demand
from abuseguard.clock import SystemClock
from abuseguard.errors import StoreTimeoutError
from abuseguard.guard import AsyncGuard, Guard
from abuseguard.testing import SECOND_NS, Blocking
from tests.redis_servers import RedisServer

MINUTE = [Demand("minute", SECOND_NS, 60 * SECOND_NS), Demand("hour", SECOND_NS, 3600 * SECOND_NS)]
TIMEOUT_SECONDS = 0.2


def settings_for(url, **more):
    return Settings(store=url, store_timeout_seconds=TIMEOUT_SECONDS, **more)


@pytest.fixture(params=[store_for, async_store_for])
def open_store(request):
    """Opens blocking and asynchronous stores alike, and closes them."""
    opened = []

    def open_one(url, **more):
        store = request.param(settings_for(url, **more), SystemClock())
        if request.param is async_store_for:
            store = Blocking(store)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


def command_calls(client):
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in client.info("commandstats").items()}


class TestKeys:
    def test_say_nothing_of_the_account(self, open_store, redis_url, redis_server):
        open_store(redis_url).take("ip:203.0.113.9", MINUTE)
        keys = sorted(redis_server.client().keys("*"))
        assert [re.fullmatch(rb"abuseguard:\{[0-9a-f]{32}\}:(minute|hour)", key) is not None for key in keys] == [
            True
        ] * 2

    def test_depend_on_the_secret(self, open_store, redis_url, redis_server):
        for secret in (b"one", b"two"):
            open_store(redis_url, secret=secret).take("alice", MINUTE[:1])
        assert redis_server.client().dbsize() == 2

    def test_begin_with_the_prefix(self, open_store, redis_url, redis_server):
        open_store(redis_url, key_prefix="shop:guard").take("alice", MINUTE[:1])
        assert redis_server.client().keys("*")[0].startswith(b"shop:guard:{")

    def test_vanish_when_the_bucket_is_full(self, open_store, redis_url, redis_server):
        store, client = open_store(redis_url), redis_server.client()
        store.take(
            "alice", [Demand("long", 100 * SECOND_NS, 900 * SECOND_NS), Demand("short", SECOND_NS // 10, SECOND_NS)]
        )
        (long_key,) = client.keys("*:long")
        assert 98_000 < client.pttl(long_key) <= 100_000
        time.sleep(0.15)
        assert client.keys("*") == [long_key]

    def test_of_full_buckets_are_not_written(self, open_store, redis_url, redis_server):
        store = open_store(redis_url)
        store.take("alice", [Demand("free", 0, SECOND_NS)])
        store.adjust("alice", [Adjustment("minute", -SECOND_NS, 60 * SECOND_NS)])
        assert redis_server.client().dbsize() == 0

    @pytest.mark.parametrize("value", ["garbage", "", "12", "-5", "9" * 400])
    def test_with_a_foreign_value_count_as_full(self, open_store, redis_url, redis_server, value):
        store, client = open_store(redis_url), redis_server.client()
        store.take("alice", MINUTE[:1])
        (key,) = client.keys("*")
        client.set(key, value)
        if value != "9" * 400:
            assert store.take("alice", MINUTE[:1]).allowed
        client.delete(key)
        client.lpush(key, "a list")
        assert store.take("alice", MINUTE[:1]).times_to_full_ns == [SECOND_NS]

    def test_of_one_account_are_in_one_slot_of_a_cluster(self, open_store, redis_cluster_url, redis_cluster):
        open_store(redis_cluster_url).take("alice", MINUTE)
        client = redis_cluster.client()
        slots = {client.keyslot(key) for key in client.keys("*", target_nodes=client.ALL_NODES)}
        assert len(slots) == 1

    @pytest.mark.parametrize("per", ["address", "everyone", lambda facts: facts.path])
    def test_that_differ_within_a_request_are_refused_for_a_cluster(self, redis_cluster_url, per):
        with pytest.raises(SettingsError, match=r"limits\[1\].per"):
            Guard(settings_for(redis_cluster_url, limits=["1/minute", Limit("2/minute", per=per)]))


class TestRoundTrips:
    def test_a_decision_is_one_command(self, open_store, redis_url, redis_server):
        store, client = open_store(redis_url), redis_server.client()
        store.take("alice", MINUTE)
        client.config_resetstat()
        for _ in range(10):
            store.take("alice", MINUTE)
        calls = command_calls(client)
        assert calls.pop("evalsha") == 10
        # What remains is what the script itself does, and our own resetting and asking.
        assert set(calls) <= {"time", "mget", "set", "config|resetstat", "config", "info", "client|setinfo", "client"}

    def test_a_denied_account_costs_none_until_it_can_be_allowed(self, open_store, redis_url, redis_server):
        store, client = open_store(redis_url), redis_server.client()
        demands = [Demand("slow", SECOND_NS // 4, SECOND_NS // 4), Demand("other", 1, SECOND_NS)]
        assert store.take("alice", demands).allowed
        assert not store.take("alice", demands).allowed
        client.config_resetstat()
        for _ in range(20):
            assert not store.take("alice", demands).allowed
        assert "evalsha" not in command_calls(client)
        time.sleep(0.3)
        assert store.take("alice", demands).allowed

    def test_a_denied_cost_does_not_deny_a_smaller_one(self, open_store, redis_url):
        store = open_store(redis_url)
        assert not store.take("alice", [Demand("limit", 0, 0), Demand("limit2", 2 * SECOND_NS, SECOND_NS)]).allowed
        store.take("alice", [Demand("limit3", 50 * SECOND_NS, 100 * SECOND_NS)])
        assert not store.take("alice", [Demand("limit3", 90 * SECOND_NS, 100 * SECOND_NS)]).allowed
        assert store.take("alice", [Demand("limit3", 10 * SECOND_NS, 100 * SECOND_NS)]).allowed

    def test_concurrent_decisions_of_a_loop_share_commands(self, redis_url, redis_server):
        client = redis_server.client()

        async def decide():
            store = async_store_for(settings_for(redis_url), SystemClock())
            await store.take("warm", MINUTE)
            client.config_resetstat()
            replies = await asyncio.gather(*(store.take(f"account-{n % 40}", MINUTE) for n in range(120)))
            await store.close()
            return replies

        replies = asyncio.run(decide())
        assert all(reply.allowed for reply in replies)
        assert command_calls(client)["evalsha"] <= 4
        # Each account came three times: each time it found what the time before had left.
        assert (
            sorted(round((reply.times_to_full_ns[0] or 0) / SECOND_NS) for reply in replies)
            == [1] * 40 + [2] * 40 + [3] * 40
        )

    def test_a_batch_denies_only_those_that_are_denied(self, redis_url):
        async def decide():
            store = async_store_for(settings_for(redis_url), SystemClock())
            narrow = [Demand("narrow", 50 * SECOND_NS, 100 * SECOND_NS)]
            replies = await asyncio.gather(*(store.take("greedy" if n % 2 else f"a{n}", narrow) for n in range(20)))
            await store.close()
            return [reply.allowed for reply in replies]

        allowed = asyncio.run(decide())
        assert all(allowed[::2])
        assert sum(allowed[1::2]) == 2

    def test_a_cancelled_request_does_not_strand_the_others(self, redis_url):
        async def decide():
            store = async_store_for(settings_for(redis_url), SystemClock())
            for _ in range(20):
                tasks = [asyncio.ensure_future(store.take(f"a{n}", MINUTE)) for n in range(10)]
                await asyncio.sleep(0)
                tasks[0].cancel()
                tasks[5].cancel()
                done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
                assert isinstance(done[0], asyncio.CancelledError)
                assert all(reply.allowed for position, reply in enumerate(done) if position not in (0, 5))
            await store.close()

        asyncio.run(decide())

    def test_event_loops_do_not_share_connections(self, redis_url):
        store = async_store_for(settings_for(redis_url), SystemClock())
        failures = []

        def run_loop():
            async def decide():
                for _ in range(50):
                    await store.take("alice", MINUTE[1:])
                await store.close()

            try:
                asyncio.run(decide())
            except Exception as error:  # noqa: BLE001 - reported below
                failures.append(error)

        threads = [threading.Thread(target=run_loop) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        last = Blocking(async_store_for(settings_for(redis_url), SystemClock()))
        assert (
            190
            < (last.take("alice", [Demand("hour", 0, 3600 * SECOND_NS)]).times_to_full_ns[0] or 0) / SECOND_NS
            <= 200
        )
        last.close()


class TestFailures:
    @pytest.fixture
    def server(self, _redis_program):
        with RedisServer() as server:
            yield server

    def test_a_server_that_lost_its_scripts_is_taught_them_again(self, open_store, redis_url, redis_server):
        store = open_store(redis_url)
        store.take("alice", MINUTE)
        redis_server.client().script_flush()
        assert store.take("alice", MINUTE).allowed
        redis_server.client().script_flush()
        store.adjust("alice", [Adjustment("minute", SECOND_NS, 60 * SECOND_NS)])
        assert round((store.take("alice", MINUTE).times_to_full_ns[0] or 0) / SECOND_NS) == 4

    def test_a_dead_server_is_an_error_and_its_return_needs_no_restart(self, open_store, server):
        store = open_store(server.url)
        store.take("alice", MINUTE)
        server.kill()
        for _ in range(5):
            with pytest.raises(StoreError):
                store.take("alice", MINUTE)
        with pytest.raises(StoreUnavailableError):  # left alone by now
            store.take("alice", MINUTE)
        server.restart()
        time.sleep(1.1)
        assert store.take("alice", MINUTE).allowed

    def test_a_dead_server_at_the_start_does_not_keep_the_guard_from_starting(self, server):
        server.kill()
        guard = Guard(settings_for(server.url, limits=["5/minute"], missing_address="shared"))
        decision = guard.decide(RequestFacts("GET", "/"))
        assert (decision.outcome, decision.admitted) == (Outcome.DEGRADED, True)
        server.restart()
        assert guard.decide(RequestFacts("GET", "/")).outcome is Outcome.ALLOWED
        guard.close()

    def test_a_cluster_that_is_away_at_the_start_does_not_keep_the_guard_from_starting(self):
        guard = Guard(settings_for("redis+cluster://127.0.0.1:1", limits=["5/minute"], missing_address="shared"))
        assert guard.decide(RequestFacts("GET", "/")).outcome is Outcome.DEGRADED
        guard.close()

    def test_a_server_that_hangs_is_waited_for_no_longer_than_the_timeout(self, open_store, server):
        store = open_store(server.url)
        store.take("alice", MINUTE)
        server.stop_answering()
        try:
            with pytest.raises(StoreTimeoutError):
                store.take("alice", MINUTE)
        finally:
            server.resume()

    def test_whoever_waits_behind_a_hanging_command_fails_with_it(self, server):
        async def decide():
            store = async_store_for(settings_for(server.url), SystemClock())
            await store.take("alice", MINUTE)
            server.stop_answering()
            try:
                started = time.monotonic()
                replies = await asyncio.gather(
                    *(store.take(f"a{n}", MINUTE) for n in range(50)), return_exceptions=True
                )
                waited = time.monotonic() - started
            finally:
                server.resume()
            await store.close()
            return replies, waited

        replies, waited = asyncio.run(decide())
        assert all(isinstance(reply, StoreError) for reply in replies)
        # One timeout for all of them; two in a row would be 0.4 s, and 50 would be 10 s.
        assert waited < 2 * TIMEOUT_SECONDS

    @pytest.mark.parametrize(
        ("policy", "admitted"), [("allow", [True] * 4), ("deny", [False] * 4), ("local", [True, True, False, False])]
    )
    def test_the_policy_answers_while_the_server_is_away(self, server, policy, admitted):
        settings = settings_for(
            server.url, limits=["8/hour burst=8"], on_store_failure=policy, workers=4, missing_address="shared"
        )
        sync_guard = Guard(settings)
        assert sync_guard.decide(RequestFacts("GET", "/")).outcome is Outcome.ALLOWED

        async def decide():
            guard = AsyncGuard(settings)
            await guard.decide(RequestFacts("GET", "/"))
            server.kill()
            decisions = [await guard.decide(RequestFacts("GET", "/")) for _ in range(4)]
            await guard.close()
            return decisions

        for decisions in (asyncio.run(decide()), [sync_guard.decide(RequestFacts("GET", "/")) for _ in range(4)]):
            assert [decision.admitted for decision in decisions] == admitted
            assert {decision.outcome for decision in decisions} == {Outcome.DEGRADED}
        sync_guard.close()

    def test_a_wrong_password_degrades(self, redis_tls_server):
        url = redis_tls_server.url.replace("correct%20horse", "wrong").replace("correct horse", "wrong")
        guard = Guard(
            settings_for(
                url,
                limits=["5/minute"],
                missing_address="shared",
                store_options={"ssl_ca_certs": str(redis_tls_server.authority_file)},
            )
        )
        assert guard.decide(RequestFacts("GET", "/")).outcome is Outcome.DEGRADED
        guard.close()

    def test_tokens_that_cannot_be_settled_are_counted(self, server):
        guard = Guard(settings_for(server.url, limits=["900/hour unit=tokens"], missing_address="shared"))
        decision = guard.decide(RequestFacts("POST", "/", content_length=0))
        assert decision.outcome is Outcome.DENIED  # 1,024 tokens are reserved when nothing is known of the answer
        decision = guard.decide(RequestFacts("GET", "/"))
        server.kill()
        guard.settle(decision, 7)
        assert guard.unsettled == 1
        guard.close()

    def test_a_sentinel_fail_over_is_followed(self, open_store, redis_sentinel, redis_sentinel_url):
        store = open_store(redis_sentinel_url)
        assert store.take("alice", MINUTE).allowed
        redis_sentinel.fail_over()
        deadline = time.monotonic() + 15
        while True:
            try:
                assert store.take("alice", MINUTE).allowed
                break
            except StoreError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
