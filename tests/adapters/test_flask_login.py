"""Users that Flask-Login has logged in, behind the guard."""

from __future__ import annotations

from flask import Flask, g
from flask_login import LoginManager, UserMixin, login_user

from abuseguard import Settings, User
from abuseguard_flask import AbuseGuard


class Person(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name
        self.email = f"{name}@example.org"


def app_with_login(account) -> Flask:
    app = Flask(__name__)
    app.secret_key = "only for tests"
    login = LoginManager(app)
    login.user_loader(Person)
    login.request_loader(lambda request: Person(request.headers["X-User"]) if "X-User" in request.headers else None)
    app.add_url_rule("/", "root", lambda: "ok")
    app.add_url_rule("/login/<name>", "login", lambda name: str(login_user(Person(name))))
    AbuseGuard(app, settings=Settings(limits=["2/hour"], account=account, exempt_paths="/login/*"))
    return app


def test_each_user_has_a_bucket_of_its_own():
    app = app_with_login(User())
    for name in ("ada", "grace"):
        assert [app.test_client().get("/", headers={"X-User": name}).status_code for _ in range(3)] == [200, 200, 429]


def test_a_user_of_a_session_is_the_same_on_every_client():
    app = app_with_login("user:email")
    clients = [app.test_client() for _ in range(3)]
    for client in clients:
        client.get("/login/ada")
    assert [client.get("/").status_code for client in clients] == [200, 200, 429]


def test_who_is_not_logged_in_is_limited_by_address():
    app = app_with_login(User())
    assert [app.test_client().get("/").status_code for _ in range(3)] == [200, 200, 429]
    assert app.test_client().get("/", headers={"X-User": "ada"}).status_code == 200


def test_an_application_without_it_is_asked_for_its_own_user():
    app = Flask("without")
    app.before_request(lambda: setattr(g, "user", "ada"))
    app.add_url_rule("/", "root", lambda: "ok")
    AbuseGuard(app, settings=Settings(limits=["1/hour"], account=User()))
    seen = [app.test_client().get("/", environ_overrides={"REMOTE_ADDR": f"192.0.2.{last}"}) for last in range(2)]
    assert [response.status_code for response in seen] == [200, 429]
