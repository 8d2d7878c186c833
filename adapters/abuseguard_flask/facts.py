"""The facts of a request in Flask."""

from __future__ import annotations

import sys

from flask import current_app, g

from abuseguard.wsgi import WsgiFacts


class FlaskFacts(WsgiFacts):
    """The facts of a request in Flask, whose request is ``native``.

    Functions of the facts are called inside the request's context: they may use ``flask.request``, ``flask.g``,
    ``flask.session`` and ``flask_login.current_user``.
    """

    __slots__ = ()

    def user(self) -> object | None:
        """Flask-Login's current user where the application uses Flask-Login, ``g.user`` where it does not."""
        login = sys.modules.get("flask_login")
        if login is not None and hasattr(current_app, "login_manager"):
            user: object | None = login.current_user._get_current_object()
            return user
        found: object | None = g.get("user")
        return found
