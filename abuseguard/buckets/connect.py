"""The store that the settings name."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from abuseguard.buckets.memory import AsyncMemoryStore, MemoryStore
from abuseguard.buckets.redis import RedisStore, library_errors, store_error
from abuseguard.buckets.store import AsyncStore, Store
from abuseguard.buckets.window_storage import WindowStorage
from abuseguard.buckets.windows import WindowedStore
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
        return _memory_store(settings, clock)
    secret = _secret(settings)
    storage = _once(lambda: redis_storage(settings, asynchronous=False))
    store = RedisStore(storage, key_prefix=settings.key_prefix, secret=secret, clock=clock)
    # So that what is wrong with the settings is said at start-up; a server that is away is no reason not to start.
    with contextlib.suppress(StoreError):
        store.connect()
    return WindowedStore(store, storage, secret=secret, clock=clock)


def async_store_for(settings: Settings, clock: Clock) -> AsyncStore:
    """The store for callers on an event loop; raises as ``store_for`` does."""
    if settings.store.startswith("memory"):
        return AsyncMemoryStore(_memory_store(settings, clock))
    # Need what only comes with a Redis client, on some Pythons.
    from abuseguard.buckets.async_redis import AsyncRedisStore
    from abuseguard.buckets.async_windows import AsyncWindowedStore

    redis_storage(settings, asynchronous=True)  # connects when first used, but says now what is wrong with the settings
    secret = _secret(settings)
    timeout_seconds = settings.store_timeout_seconds
    storage = _once_a_loop(lambda: redis_storage(settings, asynchronous=True))
    store = AsyncRedisStore(
        storage, timeout_seconds=timeout_seconds, key_prefix=settings.key_prefix, secret=secret, clock=clock
    )
    return AsyncWindowedStore(store, storage, timeout_seconds=timeout_seconds, secret=secret, clock=clock)


def _memory_store(settings: Settings, clock: Clock) -> WindowedStore:
    storage = _once(lambda: WindowStorage(max_keys=settings.max_keys, clock=clock))
    return WindowedStore(MemoryStore(max_keys=settings.max_keys, clock=clock), storage, clock=clock)


def _once(connect: Callable[[], Any]) -> Callable[[], Any]:
    """The one storage that buckets and windows share, made when first asked for."""
    lock = threading.Lock()
    made: list[Any] = []

    def storage() -> Any:
        with lock:
            if not made:
                made.append(connect())
            return made[0]

    return storage


def _once_a_loop(connect: Callable[[], Any]) -> Callable[[], Any]:
    """The same for each event loop, since connections belong to the loop that they were opened on."""
    made: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    def storage() -> Any:
        loop = asyncio.get_running_loop()
        if loop not in made:
            made[loop] = connect()
        return made[loop]

    return storage


def redis_storage(settings: Settings, *, asynchronous: bool) -> Any:
    """A Redis storage of the ``limits`` library, with a timeout on everything and no waiting between attempts.

    Raises:
        StoreError: the server cannot be reached, which only clients of a cluster notice here.
    """
    is_cluster = "+cluster" in settings.store
    if is_cluster:
        for position, limit in enumerate(settings.limits):
            # Windows are taken one by one, whichever slots they are in.
            if isinstance(limit, Limit) and limit.per != "account" and limit.strategy == "token-bucket":
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
        "key_prefix": settings.key_prefix,  # for windows
        **settings.store_options,
    }
    if "+sentinel" in settings.store:
        options.setdefault("use_replicas", False)  # they lag behind, and what was just counted must count
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
