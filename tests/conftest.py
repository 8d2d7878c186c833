"""Real Redis servers for every test that asks for one: started once a process, emptied before each test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.redis_servers import RedisCluster, RedisSentinel, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long an example takes says nothing about the code on a machine that does other things as well.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("untimed")

# Read when Django is first asked for a setting; collecting its adapter's doctests is enough for that.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django_settings")

# Where this is set, only the optional packages that it names need be there, and tests of the others are skipped.
# Everywhere else what is missing is an error, so that no test is skipped by accident.
EXPECTED = os.environ.get("TESTS_EXPECT")


def may_be_missing(package: str) -> bool:
    return EXPECTED is not None and package not in EXPECTED.split()


def _skip_if_left_out(error: BaseException | None) -> None:
    """Skips where the package that an import asked for was left out on purpose."""
    package = ((isinstance(error, ImportError) and error.name) or "abuseguard").partition(".")[0]
    if not package.startswith("abuseguard") and may_be_missing(package):
        pytest.skip(f"{package} is not installed", allow_module_level=True)


def pytest_ignore_collect(collection_path):
    # Doctests belong to the package. What the tests are made of may need a process of its own to be imported.
    part_of_tests = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if part_of_tests and collection_path.parent.name != "typing" else None


class _Module(pytest.Module):
    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            _skip_if_left_out(error.__cause__)
            raise


def pytest_pycollect_makemodule(module_path, parent):
    return _Module.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    try:
        return (yield)
    except ImportError as error:
        _skip_if_left_out(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    except ImportError as error:
        _skip_if_left_out(error)
        raise


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _redis_program() -> None:
    """A missing redis-server is an error, which the start of a server raises, unless it was left out on purpose."""
    if may_be_missing("redis"):
        pytest.skip("redis is not installed")


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
