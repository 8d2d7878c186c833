"""abuseguard for FastAPI: one line limits the application, a dependency limits one route more.

.. code-block:: python

    app.add_middleware(AbuseGuardMiddleware, settings=Settings(limits=["600/minute burst=50"]))

    @app.post("/search", dependencies=[Depends(RateLimit("5/minute"))])
    async def search(query: str): ...
"""

from __future__ import annotations

from abuseguard.asgi import AbuseGuardMiddleware
from abuseguard_fastapi.rate_limit import MissingMiddlewareError, RateLimit, RateLimitExceeded

__all__ = ["AbuseGuardMiddleware", "MissingMiddlewareError", "RateLimit", "RateLimitExceeded"]
