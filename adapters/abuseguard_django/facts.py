"""The facts of a request in Django."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from abuseguard.wsgi import WsgiFacts


class DjangoFacts(WsgiFacts):
    """The facts of a request in Django, whose request is ``native``.

    Functions of the facts are called after the URL was resolved: they may use ``request.resolver_match``, and what the
    middleware before the guard has left. Under ASGI they are called on the event loop, where the ORM, and so a
    ``request.user`` that was not loaded yet, is out of reach; ``account="user"`` is taken care of.
    """

    __slots__ = ()

    def user(self) -> object | None:
        """What ``AuthenticationMiddleware``, or another that keeps to its custom, found."""
        user: object | None = getattr(self.native, "user", None)
        return user


class LoadedUserFacts(DjangoFacts):
    """The same with a user that was loaded beforehand, as it has to be on an event loop."""

    __slots__ = ("_error", "_user")

    async def load_user(self) -> None:
        """Loads the user; if that fails, ``user`` raises what it failed with."""
        self._user: object | None = None
        self._error: Exception | None = None
        try:
            self._user = await _loaded_user(self.native)
        except Exception as error:  # noqa: BLE001 - it is raised where the guard deals with it
            self._error = error

    def user(self) -> object | None:
        if self._error is not None:
            raise self._error
        return self._user


async def _loaded_user(request: HttpRequest) -> object | None:
    user: object | None = getattr(request, "user", None)
    if type(user) is not SimpleLazyObject:
        return user
    if hasattr(request, "auser"):  # since Django 5.0
        user = await request.auser()
    else:
        await sync_to_async(_touch)(user)
    return user


def _touch(user: Any) -> None:
    user.is_authenticated  # noqa: B018 - loads it
