"""Flask behind the guard."""

from __future__ import annotations

import io
import json
from wsgiref.util import FileWrapper

import pytest
from flask import Blueprint, Flask, Response, current_app, g, jsonify, request, send_file
from flask.views import MethodView
from werkzeug.middleware.proxy_fix import ProxyFix

from abuseguard import Limit, Outcome, Settings, SettingsError, User
from abuseguard_flask import AbuseGuard
from tests.adapters.contract import CHAT, EVENTS, MESSAGE, PROMPT, TOKENS, ViewContract
from tests.wsgi.driver import Client, facts_left_behind


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


def plain_app() -> Flask:
    app = Flask("plain")
    app.add_url_rule("/", "root", lambda: "ok")
    return app


LIMITS = Settings(limits=["1/hour"])


def statuses(app: Flask, path: str = "/", *, times: int = 2, **request_options) -> list[int]:
    return [app.test_client().get(path, **request_options).status_code for _ in range(times)]


class TestExtension:
    def test_guards_the_application_it_is_made_with(self):
        app = plain_app()
        AbuseGuard(app, settings=LIMITS)
        assert statuses(app) == [200, 429]

    def test_guards_several_applications_apart(self):
        guard = AbuseGuard(settings=LIMITS)
        apps = [plain_app() for _ in range(2)]
        for app in apps:
            guard.init_app(app)
        assert [statuses(app) for app in apps] == [[200, 429]] * 2

    def test_guards_none_twice(self):
        app = plain_app()
        guard = AbuseGuard(app, settings=LIMITS)
        with pytest.raises(RuntimeError, match="plain is guarded already"):
            guard.init_app(app)

    def test_gives_the_operator_the_guard(self):
        app = plain_app()
        AbuseGuard(app, settings=LIMITS)
        statuses(app, times=3)
        assert app.extensions["abuseguard"].outcomes[Outcome.DENIED] == 2

    def test_limits_an_application_mounted_below_a_path_by_its_whole_path(self):
        app = plain_app()
        AbuseGuard(app, settings=Settings(limits=[Limit("1/hour", routes="/shop/")]))
        assert statuses(app, base_url="http://localhost/shop") == [200, 429]
        assert statuses(app) == [200, 200]

    def test_tells_limits_on_what_is_sent_without_its_content(self, tmp_path):
        app = plain_app()
        file = tmp_path / "file"
        file.write_bytes(b"a file")
        app.add_url_rule("/file", "file", lambda: send_file(file, mimetype="text/plain"))
        AbuseGuard(app, settings=Settings(limits=[TOKENS]))
        client = Client(app, validate=False)
        exchange = client.start("GET", "/file", **{"wsgi.file_wrapper": FileWrapper})
        assert isinstance(exchange.body, FileWrapper)
        response = exchange.finish()
        assert (response.body, response.remaining("tokens")) == (b"a file", 10_000)

    @pytest.mark.parametrize("limits", [["3/hour"], ["3/hour", TOKENS]])
    def test_leaves_nothing_to_the_cycle_collector(self, limits):
        app = plain_app()
        AbuseGuard(app, settings=Settings(limits=limits))
        assert facts_left_behind(Client(app, validate=False)) == []


class TestSettings:
    def test_come_from_one_mapping(self):
        app = plain_app()
        app.config["ABUSEGUARD"] = {"LIMITS": ["1/hour"]}
        AbuseGuard(app)
        assert statuses(app) == [200, 429]

    def test_come_from_single_keys(self):
        app = plain_app()
        app.config.update(ABUSEGUARD_LIMITS=["1/hour"], ABUSEGUARD_MODE="observe")
        AbuseGuard(app)
        assert statuses(app) == [200, 200]
        assert app.extensions["abuseguard"].outcomes[Outcome.DENIED] == 1

    def test_come_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("ABUSEGUARD_LIMITS", "1/hour")
        app = plain_app()
        AbuseGuard().init_app(app)
        assert statuses(app) == [200, 429]

    def test_given_in_code_come_first(self, monkeypatch):
        monkeypatch.setenv("ABUSEGUARD_LIMITS", "5/hour")
        app = plain_app()
        app.config["ABUSEGUARD_LIMITS"] = ["6/hour"]
        AbuseGuard(app, settings=LIMITS)
        assert statuses(app) == [200, 429]

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"ABUSEGUARD": {"mode": "sleep"}}, "mode: got 'sleep', expected one of 'enforce', 'observe'"),
            ({"ABUSEGUARD": ["1/hour"]}, "settings: got .'1/hour'., expected a mapping"),
            ({"ABUSEGUARD_LIMIT": "1/hour"}, "LIMIT: got '1/hour', expected one of the settings limits, "),
        ],
    )
    def test_that_are_wrong_are_said_at_start(self, config, message):
        app = plain_app()
        app.config.update(config)
        with pytest.raises(SettingsError, match=message):
            AbuseGuard(app)

    def test_of_a_wrong_type_are_said_at_start(self):
        with pytest.raises(SettingsError, match="settings: got 7, expected"):
            AbuseGuard(settings=7)


class TestOrder:
    def test_a_denied_request_reaches_nothing_of_the_application(self):
        app = plain_app()
        reached = []
        app.before_request(lambda: reached.append("before"))
        AbuseGuard(app, settings=LIMITS)
        app.before_request(lambda: reached.append("after"))
        assert statuses(app, times=3) == [200, 429, 429]
        assert reached == ["before", "after"]

    @pytest.mark.parametrize("account", [User(), lambda facts: g.get("user")])
    def test_users_are_loaded_by_functions_that_were_registered_before_the_guard(self, account):
        app = plain_app()

        @app.before_request
        def load_user():
            g.user = request.headers.get("X-User")

        AbuseGuard(app, settings=Settings(limits=["1/hour"], account=account))
        for user in ("ada", "grace"):
            assert statuses(app, headers={"X-User": user}) == [200, 429]

    def test_functions_of_the_facts_are_called_in_the_context_of_the_request(self):
        app = plain_app()
        seen = []

        def account(facts):
            seen.append((request.endpoint, current_app.name, facts.native is request._get_current_object()))
            g.account = "ada"
            return g.account

        AbuseGuard(app, settings=Settings(limits=["1/hour"], account=account))
        assert statuses(app) == [200, 429]
        assert seen == [("root", "plain", True)] * 2

    def test_functions_after_a_request_see_what_is_denied(self):
        app = plain_app()
        app.after_request(lambda response: response.headers.add("X-Seen", response.status) or response)
        AbuseGuard(app, settings=LIMITS)
        client = Client(app)
        assert [client.get().field("X-Seen") for _ in range(2)] == ["200 OK", "429 TOO MANY REQUESTS"]

    def test_other_middleware_may_come_before_and_after(self):
        app = plain_app()
        app.wsgi_app = ProxyFix(app.wsgi_app)
        AbuseGuard(app, settings=LIMITS)
        app.wsgi_app = ProxyFix(app.wsgi_app)
        for last in range(2):
            assert statuses(app, headers={"X-Forwarded-For": f"198.51.100.{last}"}) == [200, 429]


class TestErrors:
    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_an_error_that_is_propagated_is_the_applications(self, limit):
        app = plain_app()
        app.testing = True

        @app.post("/fail")
        def fail():
            raise ZeroDivisionError

        AbuseGuard(app, settings=Settings(limits=[limit]))
        client = Client(app)
        with pytest.raises(ZeroDivisionError):
            client.post("/fail", PROMPT)
        response = client.get()
        assert response.status == 200
        if limit is TOKENS:
            assert response.remaining("tokens") == 10_000

    def test_an_error_after_the_view_still_tells_the_limits(self):
        app = plain_app()

        @app.after_request
        def fail(response):
            raise ZeroDivisionError

        AbuseGuard(app, settings=LIMITS)
        response = Client(app).get()
        assert response.status == 500
        assert response.tells_limits

    def test_a_handler_of_the_applications_own(self):
        app = plain_app()
        app.register_error_handler(404, lambda error: ("nothing here", 404))
        AbuseGuard(app, settings=LIMITS)
        response = Client(app).get("/nowhere")
        assert (response.status, response.body, response.remaining("1-per-hour")) == (404, b"nothing here", 0)

    def test_a_body_that_somebody_read_before_is_not_read_again(self):
        app = plain_app()

        @app.url_value_preprocessor
        def read(endpoint, values):
            g.body = request.stream.read()

        @app.post("/echo")
        def echo():
            return g.body + request.get_data()

        class Connection(io.BytesIO):
            def read(self, *_):
                """What a read at the end of a body does where the connection stays open: it never returns."""
                if self.tell() == len(self.getvalue()):
                    raise SystemExit
                return super().read()

        AbuseGuard(app, settings=Settings(limits=[TOKENS]))
        body = json.dumps(PROMPT).encode()
        client = Client(app, validate=False)
        assert client.post("/echo", body, **{"wsgi.input": Connection(body)}).body == body


class TestLimit:
    def test_is_refused_where_there_is_no_guard(self):
        app = plain_app()
        app.testing = True
        app.add_url_rule("/limited", "limited", AbuseGuard().limit("1/hour")(lambda: "ok"))
        with pytest.raises(RuntimeError, match="a view of plain has a limit, but no AbuseGuard guards"):
            app.test_client().get("/limited")

    def test_is_no_obstacle_where_there_is_no_server(self):
        app = plain_app()
        guard = AbuseGuard(app, settings=LIMITS)

        @app.get("/limited")
        @guard.limit("1/hour")
        def limited():
            return "ok"

        with app.test_request_context("/limited"):
            assert [limited() for _ in range(3)] == ["ok"] * 3
            assert app.full_dispatch_request().status_code == 200

    def test_counts_a_function_that_is_no_view(self):
        app = plain_app()
        guard = AbuseGuard(app, settings=Settings(limits=["9/hour"]))

        @guard.limit("2/hour", name="messages-sent")
        def send_message():
            sent.append(1)

        @app.get("/send/<int:count>")
        def send(count):
            for _ in range(count):
                send_message()
            return "sent"

        sent = []
        client = Client(app)
        assert client.get("/send/1").remaining("messages-sent") == 1
        denied = client.get("/send/2")
        assert (denied.status, len(sent)) == (429, 2)
        assert client.get().remaining("9-per-hour") == 7

    def test_is_apart_for_each_endpoint_of_a_blueprint(self):
        guard = AbuseGuard(settings=Settings())
        blueprint = Blueprint("users", __name__)

        @blueprint.get("/users")
        @guard.limit("1/hour")
        def users():
            return "ok"

        app = plain_app()
        guard.init_app(app)
        app.register_blueprint(blueprint, url_prefix="/v1", name="v1")
        app.register_blueprint(blueprint, url_prefix="/v2", name="v2")
        assert [statuses(app, path) for path in ("/v1/users", "/v2/users")] == [[200, 429]] * 2
        (name,) = Client(app).get("/v1/users").limits()
        assert name == "1-per-hour-v1.users"

    def test_of_one_limit_is_shared(self):
        guard = AbuseGuard(settings=Settings())
        app = plain_app()
        guard.init_app(app)
        shared = guard.limit(Limit("1/hour", name="one"))
        for path in ("/a", "/b"):
            app.add_url_rule(path, path, shared(lambda: "ok"))
        assert [statuses(app, path, times=1) for path in ("/a", "/b")] == [[200], [429]]

    def test_can_be_shared(self):
        guard = AbuseGuard(settings=Settings(limits=["1/hour"]))
        app = plain_app()
        guard.init_app(app)
        for path in ("/a", "/b"):
            app.add_url_rule(path, path, guard.limit("1/hour", shared=True, cost=0)(lambda: "ok"))
        names = [set(Client(app).get(path, REMOTE_ADDR=f"192.0.2.{path == '/a':d}").limits()) for path in ("/a", "/b")]
        assert names == [{"1-per-hour", "shared-1-per-hour"}] * 2

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            (("often",), {}, "rate: got 'often', expected a rate"),
            (("5/minute",), {"cost": -1}, "cost: got -1, expected a whole number"),
            (("5/minute",), {"often": 1}, "often: got 1, expected one of the fields"),
            (("5/minute",), {"unit": "messages"}, "unit: got 'messages', expected 'requests' or 'tokens'"),
            (("5/minute",), {"shared": 1}, "shared: got 1, expected True or False"),
            ((Limit("5/minute"),), {"cost": 2}, "cost: got 2, expected no options besides a whole Limit"),
        ],
    )
    def test_that_is_wrong_is_said_when_it_is_written(self, arguments, options, message):
        with pytest.raises(SettingsError, match=message):
            AbuseGuard.limit(*arguments, **options)

    def test_in_tokens_that_is_hidden_is_an_error(self):
        app = plain_app()
        app.testing = True
        guard = AbuseGuard(app, settings=Settings())
        app.add_url_rule("/chat", "chat", hiding(guard.limit("9/day", unit="tokens")(lambda: "ok")))
        with pytest.raises(RuntimeError, match="is hidden by a decorator that lacks"):
            Client(app).get("/chat")

    def test_on_a_class_is_an_error(self):
        for decorator in (AbuseGuard.limit("1/hour"), AbuseGuard.exempt):
            with pytest.raises(TypeError, match="Limited is a class: decorate the view"):

                @decorator
                class Limited(MethodView):
                    pass
