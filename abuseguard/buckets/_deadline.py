"""A deadline for what is waited for: ``asyncio.timeout``, also where Python has none that is sound."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11, 3):
    from asyncio import timeout  # type: ignore[attr-defined,unused-ignore]
else:
    # Comes with redis-py, which needs it for the same Pythons.
    from async_timeout import timeout  # type: ignore[import-not-found,unused-ignore]

__all__ = ["timeout"]
