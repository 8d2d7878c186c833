"""The store that the settings name."""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from abuseguard.buckets.async_redis import AsyncRedisStore
from abuseguard.buckets.memory import AsyncMemoryStore, MemoryStore
from abuseguard.buckets.redis import RedisStore, library_errors, store_error
from abuseguard.buckets.store import AsyncStore, Store
from abuseguard.clock import Clock
from abuseguard.errors import MissingExtraError, SettingsError, StoreError
from abuseguard.limit import Limit
from abuseguard.settings import Settings


def store_for(settings: Settings, clock: Clock) -> Store:
    """The store for callers that may block.

    Raises:
        MissingExtraError: its client library is not installed.
        SettingsError: its URI or its options are wrong.
    """
    if settings.store.startswith("memory"):
        return MemoryStore(max_keys=settings.max_keys, clock=clock)
    store = RedisStore(
        lambda: redis_storage(settings, asynchronous=False),
        key_prefix=settings.key_prefix,
        secret=_secret(settings),
        clock=clock,
    )
    # So that what is wrong with the settings is said at start-up; a server that is away is no reason not to start.
    with contextlib.suppress(StoreError):
        store.connect()
    return store


def async_store_for(settings: Settings, clock: Clock) -> AsyncStore:
    """The store for callers on an event loop; raises as ``store_for`` does."""
    if settings.store.startswith("memory"):
        return AsyncMemoryStore(MemoryStore(max_keys=settings.max_keys, clock=clock))
    redis_storage(
        settings, asynchronous=True
    )  # connects only when first used, but says what is wrong with the settings
    return AsyncRedisStore(
        lambda: redis_storage(settings, asynchronous=True),
        timeout_seconds=settings.store_timeout_seconds,
        key_prefix=settings.key_prefix,
        secret=_secret(settings),
        clock=clock,
    )


def redis_storage(settings: Settings, *, asynchronous: bool) -> Any:
    """A Redis storage of the ``limits`` library, with a timeout on everything and no waiting between attempts.

    Raises:
        StoreError: the server cannot be reached, which only clients of a cluster notice here.
    """
    is_cluster = "+cluster" in settings.store
    if is_cluster:
        for position, limit in enumerate(settings.limits):
            if isinstance(limit, Limit) and limit.per != "account":
                raise SettingsError(
                    f"limits[{position}].per",
                    limit.per,
                    "'account': a cluster can take only one key's buckets in one step",
                )
    library = "valkey" if settings.store.startswith("valkey") else "redis"
    try:
        retry = import_module(f"{library}.asyncio.retry" if asynchronous else f"{library}.retry")
        backoff, exceptions = import_module(f"{library}.backoff"), import_module(f"{library}.exceptions")
    except ImportError:
        raise MissingExtraError(library, library) from None
    from limits.storage import storage_from_string

    # Once more at once: a pooled connection may have died while it was idle. A cluster's client closes all connections
    # when slots have moved, also those that others are waiting on, so there it takes more; a deadline ends it.
    attempts = 3 if asynchronous and is_cluster else 1
    options: dict[str, Any] = {
        "socket_timeout": None if asynchronous else settings.store_timeout_seconds,
        "socket_connect_timeout": settings.store_timeout_seconds,
        # Never after a timeout, which would make the request wait twice.
        "retry": retry.Retry(
            backoff.NoBackoff(), attempts, supported_errors=(exceptions.ConnectionError, ConnectionError)
        ),
        **settings.store_options,
    }
    uri = settings.store
    if asynchronous:
        uri = f"async+{uri}"
        options["implementation"] = "valkey" if library == "valkey" else "redispy"
    unreachable: tuple[type[Exception], ...] = (*library_errors(exceptions), OSError)
    try:
        return storage_from_string(uri, **options)
    except unreachable as error:
        raise store_error(error) from error
    except Exception as error:
        shown = urlsplit(settings.store)
        raise SettingsError("store", f"{shown.scheme}://...", f"a store that can be used ({error})") from error


def _secret(settings: Settings) -> bytes:
    return settings.secret if isinstance(settings.secret, bytes) else settings.secret.encode()
