"""The store that the settings name."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from abuseguard.buckets.async_redis import AsyncRedisStore
from abuseguard.buckets.memory import AsyncMemoryStore, MemoryStore
from abuseguard.buckets.redis import RedisStore
from abuseguard.buckets.store import AsyncStore, Store
from abuseguard.clock import Clock
from abuseguard.errors import MissingExtraError, SettingsError
from abuseguard.settings import Settings


def store_for(settings: Settings, clock: Clock) -> Store:
    """The store for callers that may block.

    Raises:
        MissingExtraError: its client library is not installed.
        SettingsError: its URI or its options are wrong.
    """
    if settings.store.startswith("memory"):
        return MemoryStore(max_keys=settings.max_keys, clock=clock)
    return RedisStore(
        redis_storage(settings, asynchronous=False),
        key_prefix=settings.key_prefix,
        secret=_secret(settings),
        clock=clock,
    )


def async_store_for(settings: Settings, clock: Clock) -> AsyncStore:
    """The store for callers on an event loop; raises as ``store_for`` does."""
    if settings.store.startswith("memory"):
        return AsyncMemoryStore(MemoryStore(max_keys=settings.max_keys, clock=clock))
    redis_storage(settings, asynchronous=True)  # so that what is wrong is said at start-up, not at the first request
    return AsyncRedisStore(
        lambda: redis_storage(settings, asynchronous=True),
        key_prefix=settings.key_prefix,
        secret=_secret(settings),
        clock=clock,
    )


def redis_storage(settings: Settings, *, asynchronous: bool) -> Any:
    """A Redis storage of the ``limits`` library, with a timeout on everything and no waiting between attempts."""
    library = "valkey" if settings.store.startswith("valkey") else "redis"
    try:
        client = __import__(library)
        retry_module = __import__(
            f"{library}.asyncio.retry" if asynchronous else f"{library}.retry", fromlist=["Retry"]
        )
        backoff = __import__(f"{library}.backoff", fromlist=["NoBackoff"])
    except ImportError:
        raise MissingExtraError(library, library) from None
    from limits.storage import storage_from_string

    options: dict[str, Any] = {
        "socket_timeout": settings.store_timeout_seconds,
        "socket_connect_timeout": settings.store_timeout_seconds,
        # Once more at once: a pooled connection may have died while it was idle. Never after a timeout, which would
        # make the request wait twice.
        "retry": retry_module.Retry(
            backoff.NoBackoff(), 1, supported_errors=(client.exceptions.ConnectionError, ConnectionError)
        ),
        **settings.store_options,
    }
    uri = settings.store
    if asynchronous:
        uri = f"async+{uri}"
        options["implementation"] = "valkey" if library == "valkey" else "redispy"
    try:
        return storage_from_string(uri, **options)
    except Exception as error:
        shown = urlsplit(settings.store)
        raise SettingsError("store", f"{shown.scheme}://...", f"a store that can be used ({error})") from error


def _secret(settings: Settings) -> bytes:
    return settings.secret if isinstance(settings.secret, bytes) else settings.secret.encode()
