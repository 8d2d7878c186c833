"""What a type checker makes of what FastAPI users write; checked by mypy, and run, so that it is also true."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware

from abuseguard import Limit, RequestFacts, Settings
from abuseguard.asgi import AbuseGuardMiddleware as AsgiMiddleware
from abuseguard.clock import ManualClock
from abuseguard.guard import AsyncGuard
from abuseguard_fastapi import AbuseGuardMiddleware, RateLimit

SETTINGS = Settings(limits=[Limit("600/minute", burst=50), Limit("200000/hour", unit="tokens")], store="memory://")

app = FastAPI()
app.add_middleware(AbuseGuardMiddleware, settings=SETTINGS)
app.add_middleware(AbuseGuardMiddleware, settings=SETTINGS, clock=ManualClock())
app.add_middleware(AbuseGuardMiddleware, guard=AsyncGuard(SETTINGS))


def cost(facts: RequestFacts) -> int:
    return len(facts.path)


FivePerMinute = Annotated[None, Depends(RateLimit("5/minute", burst=2, cost=cost))]
router = APIRouter(dependencies=[Depends(RateLimit("5/minute", per="address", shared=True))])


@router.get("/items/{number}", dependencies=[Depends(RateLimit("5/minute", plans=["free"], name="items"))])
async def item(number: int, limit: FivePerMinute) -> int:
    return number


app.include_router(router)
STARLETTE = Starlette(middleware=[Middleware(AsgiMiddleware, settings=SETTINGS)])
WRAPPED = AsgiMiddleware(STARLETTE, SETTINGS)


def mistaken() -> None:
    app.add_middleware(AbuseGuardMiddleware, setting=SETTINGS)  # type: ignore[call-arg]
    RateLimit("5/minute", 2)  # type: ignore[call-arg]
    RateLimit("5/minute", cost="2")  # type: ignore[arg-type]
