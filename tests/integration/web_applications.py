"""The same small application four times, for real servers: bare WSGI, Flask, Django on both of its sides.

Settings come from the environment, ``ABUSEGUARD_*``. A stream waits, after its first event, for the file that its query
string names to be there; ``GET /open`` makes it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

GATES = Path(os.environ["TEST_GATES"])
EVENT = b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\n'
LAST_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
CHAT = {"usage": {"prompt_tokens": 20, "completion_tokens": 30}}
STREAM = "text/event-stream"


def process() -> str:
    time.sleep(0.005)  # so that requests at the same time need several workers
    return str(os.getpid())


def stream(gate: str):
    yield EVENT
    while not (GATES / gate).exists():
        time.sleep(0.005)
    yield LAST_EVENT


def endless():
    while True:
        yield EVENT
        time.sleep(0.005)


def bare():
    from abuseguard.wsgi import AbuseGuardMiddleware

    def app(environ, start_response):
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        content_type = STREAM if path in ("/llm/stream", "/llm/endless") else "application/json"
        start_response("200 OK", [("Content-Type", content_type)])
        if path == "/llm/stream":
            return stream(query)
        if path == "/llm/endless":
            return endless()
        if path == "/open":
            (GATES / query).touch()
        return [json.dumps(CHAT).encode() if path == "/llm/chat" else process().encode()]

    return AbuseGuardMiddleware(app)


def flask():
    from flask import Flask, Response, request

    from abuseguard_flask import AbuseGuard

    app = Flask(__name__)
    AbuseGuard(app)
    app.add_url_rule("/", "root", process)
    app.add_url_rule("/llm/left", "left", process)
    app.add_url_rule("/llm/chat", "chat", lambda: CHAT, methods=["POST"])

    @app.get("/open")
    def open_gate():
        (GATES / request.query_string.decode()).touch()
        return process()

    @app.post("/llm/stream")
    def respond_with_stream():
        return Response(stream(request.query_string.decode()), content_type=STREAM)

    @app.post("/llm/endless")
    def respond_without_end():
        return Response(endless(), content_type=STREAM)

    return app


def _django(*, is_async: bool):
    import django
    from django import conf
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    async def async_stream(gate: str):
        yield EVENT
        while not (GATES / gate).exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.005)
        yield LAST_EVENT

    async def async_endless():
        while True:
            yield EVENT
            await asyncio.sleep(0.005)

    def respond(request):
        return HttpResponse(process())

    async def respond_async(request):
        return HttpResponse(str(os.getpid()))

    def open_gate(request):
        (GATES / request.META["QUERY_STRING"]).touch()
        return HttpResponse(process())

    def respond_with_stream(request):
        made = (async_stream if is_async else stream)(request.META["QUERY_STRING"])
        return StreamingHttpResponse(made, content_type=STREAM)

    def respond_without_end(request):
        return StreamingHttpResponse((async_endless if is_async else endless)(), content_type=STREAM)

    conf.settings.configure(
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=["abuseguard_django.middleware.AbuseGuardMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="only for tests",
    )
    sys.modules[__name__].urlpatterns = [
        path("", respond_async if is_async else respond),
        path("open", open_gate),
        path("llm/left", respond),
        path("llm/chat", lambda request: JsonResponse(CHAT)),
        path("llm/stream", respond_with_stream),
        path("llm/endless", respond_without_end),
    ]
    django.setup()
    return ASGIHandler() if is_async else WSGIHandler()


def django_wsgi():
    return _django(is_async=False)


def django_asgi():
    return _django(is_async=True)
