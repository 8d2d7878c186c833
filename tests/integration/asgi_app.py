"""An application for real servers, guarded by what the environment says."""

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

from abuseguard_fastapi import AbuseGuardMiddleware, RateLimit

app = FastAPI()
app.add_middleware(AbuseGuardMiddleware)

released: dict[str, asyncio.Semaphore] = {}


@app.get("/")
@app.head("/")
async def root(request: Request) -> dict[str, int]:
    return {"port": request.scope["client"][1], "process": os.getpid()}


@app.post("/")
async def echo(request: Request) -> Response:
    return Response(await request.body())


@app.get("/once", dependencies=[Depends(RateLimit("1/hour"))])
async def once() -> int:
    return 1


@app.get("/stream/{name}")
async def stream(name: str) -> StreamingResponse:
    """Events, of which each but the first waits to be released."""
    release = released[name] = asyncio.Semaphore(1)

    async def events() -> AsyncIterator[bytes]:
        for number in range(3):
            await release.acquire()
            yield b"data: %d\n\n" % number

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/stream/{name}")
async def release(name: str) -> None:
    released[name].release()


@app.post("/v1/chat/completions")
async def chat() -> StreamingResponse:
    """A model that never stops."""

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b'data: {"choices":[{"delta":{"content":"so"}}]}\n\n'
            await asyncio.sleep(0.005)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.websocket("/ws")
async def websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)
