"""Flask behind the guard."""

from __future__ import annotations

from flask import Blueprint, Flask, Response, g, jsonify, request
from flask.views import MethodView

from abuseguard import Settings
from abuseguard_flask import AbuseGuard
from tests.adapters.contract import CHAT, EVENTS, MESSAGE, ViewContract
from tests.wsgi.driver import Client


def failing_stream():
    yield from EVENTS[:2]
    raise ZeroDivisionError


def hiding(view):
    """A decorator that forgets what others have written on the view."""

    def hidden():
        return view()

    return hidden


def flask_app(guard: AbuseGuard) -> Flask:
    app = Flask(__name__)

    @app.before_request
    def load_user():
        name = request.headers.get("X-User")
        g.user = name

    @app.get("/", endpoint="root")
    @app.get("/other")
    @app.get("/items/<name>")
    def ok(name=None):
        return "ok"

    @app.get("/raises")
    @app.post("/failing-chat")
    def fail():
        raise ZeroDivisionError

    @app.post("/echo")
    def echo():
        return request.get_data()

    @app.post("/chat")
    def chat():
        return jsonify(CHAT)

    @app.post("/messages")
    def messages():
        return jsonify(MESSAGE)

    @app.post("/stream")
    def stream():
        return Response((event for event in EVENTS), content_type="text/event-stream")

    @app.post("/stream-raises")
    def stream_raises():
        return Response(failing_stream(), content_type="text/event-stream")

    return app


def limited_app(guard: AbuseGuard) -> Flask:
    app = flask_app(guard)
    blueprint = Blueprint("limited", __name__)

    @app.get("/limited")
    @guard.limit("2/hour")
    def limited():
        return "ok"

    @blueprint.get("/limited-async")
    @guard.limit("2/hour")
    async def limited_async():
        return "ok"

    class Limited(MethodView):
        decorators = [guard.limit("2/hour")]  # noqa: RUF012 - as Flask has it

        def get(self):
            return "ok"

    @app.get("/hidden", endpoint="hidden")
    @hiding
    @guard.limit("2/hour")
    def hidden():
        return "ok"

    @app.get("/shared-1")
    @guard.limit("2/hour", name="shared")
    def shared_1():
        return "ok"

    @app.get("/shared-2")
    @guard.limit("2/hour", name="shared")
    def shared_2():
        return "ok"

    @app.get("/twice")
    @guard.limit("3/hour")
    @guard.limit("2/day")
    def twice():
        return "ok"

    @app.get("/costly")
    @guard.limit("3/hour", cost=2)
    def costly():
        return "ok"

    @app.post("/chat-limited")
    @guard.limit("200/day", unit="tokens")
    def chat_limited():
        return jsonify(CHAT)

    @app.get("/exempt")
    @guard.exempt
    def exempt():
        return "ok"

    class Exempt(MethodView):
        decorators = [guard.exempt]  # noqa: RUF012

        def get(self):
            return "ok"

    blueprint.add_url_rule("/limited-class", view_func=Limited.as_view("limited"))
    blueprint.add_url_rule("/exempt-class", view_func=Exempt.as_view("exempt"))
    app.register_blueprint(blueprint)
    return app


class TestContract(ViewContract):
    def client_for(self, settings: Settings) -> Client:
        guard = AbuseGuard(settings=settings)
        app = limited_app(guard)
        guard.init_app(app)
        return Client(app)
