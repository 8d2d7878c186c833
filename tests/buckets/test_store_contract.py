"""Every store runs the one contract: memory, and Redis in all its forms, blocking and on an event loop."""

from __future__ import annotations

import pytest

from abuseguard import Settings
from abuseguard.buckets.connect import async_store_for, store_for
from abuseguard.buckets.memory import AsyncMemoryStore, MemoryStore
from abuseguard.clock import ManualClock, SystemClock
from abuseguard.testing import Blocking, StoreContract

REDIS = ["redis_url", "redis_tls", "redis_cluster_url", "redis_sentinel_url"]


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        self.clock = ManualClock()
        return MemoryStore(clock=self.clock)

    def pass_time(self, seconds):
        self.clock.advance(seconds=seconds)


class TestAsyncMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        self.clock = ManualClock()
        store = Blocking(AsyncMemoryStore(MemoryStore(clock=self.clock)))
        yield store
        store.close()

    def pass_time(self, seconds):
        self.clock.advance(seconds=seconds)


@pytest.fixture(params=REDIS)
def redis_settings(request):
    if request.param == "redis_tls":
        url = request.getfixturevalue("redis_tls_url")
        authority = request.getfixturevalue("redis_tls_server").authority_file
        return Settings(store=url, store_options={"ssl_ca_certs": str(authority)}, store_timeout_seconds=2)
    return Settings(store=request.getfixturevalue(request.param), store_timeout_seconds=2)


class TestRedisStore(StoreContract):
    @pytest.fixture
    def store(self, redis_settings):
        store = store_for(redis_settings, SystemClock())
        yield store
        store.close()


class TestAsyncRedisStore(StoreContract):
    @pytest.fixture
    def store(self, redis_settings):
        store = Blocking(async_store_for(redis_settings, SystemClock()))
        yield store
        store.close()
