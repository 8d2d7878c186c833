"""Real Redis servers for every test that asks for one: started once a process, emptied before each test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.redis_servers import RedisCluster, RedisSentinel, RedisServer, redis_program

if TYPE_CHECKING:
    from collections.abc import Iterator

# Set where the optional packages are left out on purpose, and nowhere else: elsewhere, what is missing is an error.
NO_EXTRAS = "ABUSEGUARD_TESTS_WITHOUT_EXTRAS" in os.environ


class _Module(pytest.Module):
    """A test module that is skipped, rather than broken, where the package it imports was left out on purpose."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            missing = error.__cause__
            if isinstance(missing, ImportError) and missing.name and not missing.name.startswith("abuseguard"):
                pytest.skip(f"{missing.name} is not installed", allow_module_level=True)
            raise


if NO_EXTRAS:

    def pytest_pycollect_makemodule(module_path, parent):
        return _Module.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _redis_program() -> None:
    """Without extras there may be no Redis; with them, its absence is an error that the start of a server raises."""
    if NO_EXTRAS and redis_program() is None:
        pytest.skip("no redis-server")


@pytest.fixture(scope="session")
def redis_server(_redis_program) -> Iterator[RedisServer]:
    """One server for all tests. A test that kills one, or changes its configuration, starts its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_tls_server(_redis_program) -> Iterator[RedisServer]:
    """One server behind TLS, with a password; ``authority_file`` is what clients must trust."""
    with RedisServer(tls=True, password="correct horse") as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(_redis_program) -> Iterator[RedisCluster]:
    """Three masters; takes two seconds to start."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_sentinel(_redis_program) -> Iterator[RedisSentinel]:
    """A master and its replica under a sentinel."""
    with RedisSentinel() as sentinel:
        yield sentinel


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty server."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def redis_tls_url(redis_tls_server: RedisServer) -> str:
    """The URL of an empty server that is reached by TLS."""
    redis_tls_server.flush()
    return redis_tls_server.url


@pytest.fixture
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """The URL of an empty cluster."""
    redis_cluster.flush()
    return redis_cluster.url


@pytest.fixture
def redis_sentinel_url(redis_sentinel: RedisSentinel) -> str:
    """The URL of an empty service under a sentinel."""
    redis_sentinel.flush()
    return redis_sentinel.url
