"""Bare WSGI, Bottle and Falcon behind the guard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import bottle
import falcon

from abuseguard import Settings
from abuseguard.wsgi import AbuseGuardMiddleware
from tests.adapters.contract import CHAT, EVENTS, MESSAGE, AdapterContract
from tests.wsgi.driver import Client

SERVER_SENT_EVENTS = "text/event-stream"


def failing_stream():
    yield from EVENTS[:2]
    raise ZeroDivisionError


def bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    def respond(body: Any, content_type: str = "text/plain", status: str = "200 OK") -> Any:
        start_response(status, [("Content-Type", content_type)])
        return body if not isinstance(body, bytes) else [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    path = environ["PATH_INFO"]
    if path in ("/", "/other") or path.startswith("/items/"):
        return respond(b"ok")
    if path in ("/raises", "/failing-chat"):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")], sys.exc_info())
            return [b"failed"]
    if path == "/echo":
        return respond(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    if path in ("/chat", "/messages"):
        return respond(json.dumps(CHAT if path == "/chat" else MESSAGE).encode(), "application/json")
    if path == "/stream":
        return respond((event for event in EVENTS), SERVER_SENT_EVENTS)
    if path == "/stream-raises":
        return respond(failing_stream(), SERVER_SENT_EVENTS)
    return respond(b"not found", status="404 Not Found")


class TestBare(AdapterContract):
    def client_for(self, settings: Settings) -> Client:
        return Client(AbuseGuardMiddleware(bare, settings))


def bottle_app() -> bottle.Bottle:
    app = bottle.Bottle()

    def fail():
        raise ZeroDivisionError

    def echo():
        return bottle.request.body.read()

    def stream(events):
        bottle.response.content_type = SERVER_SENT_EVENTS
        yield from events

    app.route(["/", "/other", "/items/<name>"], callback=lambda name=None: "ok")
    app.route("/raises", callback=fail)
    app.post("/failing-chat", callback=fail)
    app.post("/echo", callback=echo)
    app.post("/chat", callback=lambda: CHAT)
    app.post("/messages", callback=lambda: MESSAGE)
    app.post("/stream", callback=lambda: stream(EVENTS))
    app.post("/stream-raises", callback=lambda: stream(failing_stream()))
    return app


class TestBottle(AdapterContract):
    def client_for(self, settings: Settings) -> Client:
        return Client(AbuseGuardMiddleware(bottle_app(), settings))


class Plain:
    def on_get(self, request, response, **_):
        response.text = "ok"

    on_head = on_get


class Failing:
    def on_get(self, request, response):
        raise ZeroDivisionError

    on_post = on_get


class Echo:
    def on_post(self, request, response):
        response.data = request.bounded_stream.read()


class Media:
    def __init__(self, media):
        self.media = media

    def on_post(self, request, response):
        response.media = self.media


class Stream:
    def __init__(self, make):
        self.make = make

    def on_post(self, request, response):
        response.content_type = SERVER_SENT_EVENTS
        response.stream = self.make()


def falcon_app() -> falcon.App:
    app = falcon.App()
    for path in ("/", "/other", "/items/{name}"):
        app.add_route(path, Plain())
    for path in ("/raises", "/failing-chat"):
        app.add_route(path, Failing())
    app.add_route("/echo", Echo())
    app.add_route("/chat", Media(CHAT))
    app.add_route("/messages", Media(MESSAGE))
    app.add_route("/stream", Stream(lambda: iter(EVENTS)))
    app.add_route("/stream-raises", Stream(failing_stream))
    return app


class TestFalcon(AdapterContract):
    def client_for(self, settings: Settings) -> Client:
        return Client(AbuseGuardMiddleware(falcon_app(), settings))
