"""A server in the shape of a chat API, with the guard in front of it: what an application with abuseguard looks like.

Answers are canned. How long they are is up to the caller: the length that the log recorded, in a header, or
``max_tokens``. One word is one token.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Header
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from abuseguard.clock import ManualClock
from abuseguard.demo.log_time import LogTime, note_decision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OUTPUT_TOKENS_HEADER = "x-demo-output-tokens"
DEFAULT_OUTPUT_TOKENS = 64
MAX_OUTPUT_TOKENS = 32_768
STREAMED_PIECES = 4
MODELS = ("demo-large", "demo-small")

_PROSE = """A bucket holds as many tokens as you care to give it and gains new ones at a steady pace . Whoever asks
takes one out , and whoever finds it empty comes back a little later . Nobody has to count days or minutes for that ,
because the only thing worth writing down is when the bucket will be full again ."""
_WORDS = _PROSE.split()
_TEXT = _WORDS * (MAX_OUTPUT_TOKENS // len(_WORDS) + 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How the demo's server is set up.

    Args:
        limits: as in ``Settings.limits``, each a text; none for a server without a guard.
        log_time: let each request set the time by its header, instead of the system's clock.
    """

    limits: tuple[str, ...]
    log_time: bool = True


class ChatMessage(BaseModel):
    """One message of a chat completion's request."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(BaseModel):
    """As much of a chat completion's request as the demo looks at."""

    model: str = MODELS[0]
    messages: list[ChatMessage]
    stream: bool = False
    max_tokens: int | None = Field(default=None, ge=1)


def build_app(options: ServerOptions) -> FastAPI:
    """The demo's application.

    Raises:
        SettingsError: a limit is wrong.
    """
    app = FastAPI(title="abuseguard demo", openapi_url=None)
    app.add_api_route("/v1/chat/completions", _complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", _list_models, response_model=None)
    app.add_api_route("/healthz", _report_health, response_model=None)
    clock = ManualClock() if options.log_time else None
    if options.limits:
        _protect(app, options, clock)
    app.add_middleware(LogTime, clock=clock)
    return app


def _protect(app: FastAPI, options: ServerOptions, clock: ManualClock | None) -> None:
    """Puts the guard in front of the application: the one line that this demo is about."""
    from abuseguard import Settings
    from abuseguard.identity import ApiKey
    from abuseguard_fastapi import AbuseGuardMiddleware

    settings = Settings(
        limits=options.limits,
        account=ApiKey(),
        trusted_proxies=["127.0.0.1"],
        exempt_paths=["/healthz"],
        observer=note_decision,
    )
    app.add_middleware(AbuseGuardMiddleware, settings=settings, clock=clock)


async def _complete(body: ChatRequest, x_demo_output_tokens: int = Header(DEFAULT_OUTPUT_TOKENS, ge=1)) -> Response:
    length = min(x_demo_output_tokens, body.max_tokens or MAX_OUTPUT_TOKENS, MAX_OUTPUT_TOKENS)
    texts = [message.content if isinstance(message.content, str) else "" for message in body.messages]
    input_tokens = max(1, sum(map(len, texts)) // 4)
    usage = {"prompt_tokens": input_tokens, "completion_tokens": length, "total_tokens": input_tokens + length}
    fingerprint = zlib.crc32("\n".join(texts).encode("utf-8", "replace"))
    start = fingerprint % len(_WORDS)
    words = _TEXT[start : start + length]
    common = {"id": f"chatcmpl-demo-{fingerprint:08x}", "created": 0, "model": body.model}
    if body.stream:
        return StreamingResponse(_stream(common, words, usage), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": " ".join(words)}, "finish_reason": "stop"}
    return JSONResponse({**common, "object": "chat.completion", "choices": [choice], "usage": usage})


async def _stream(common: dict[str, Any], words: list[str], usage: dict[str, int]) -> AsyncIterator[bytes]:
    """Server-sent events, a piece of the answer each, the tokens used at the end."""
    common = {**common, "object": "chat.completion.chunk"}
    piece = -(-len(words) // STREAMED_PIECES)
    for start in range(0, len(words), piece):
        delta = {"content": " ".join(words[start : start + piece]) + " "}
        yield _event({**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield _event({**common, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def _list_models() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "demo"} for model in MODELS]}


async def _report_health() -> dict[str, str]:
    return {"status": "ok"}
