"""A Django project with the views of the contract; ``AsyncUrls`` has some of them as coroutine functions."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import SuspiciousOperation
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils.asyncio import async_unsafe
from django.utils.decorators import method_decorator
from django.views import View

from abuseguard_django import exempt, limit
from tests.adapters.contract import CHAT, EVENTS, MESSAGE

MIDDLEWARE = "abuseguard_django.middleware.AbuseGuardMiddleware"

SETTINGS = {
    "AUTHENTICATION_BACKENDS": [f"{__name__}.Backend"],
    "DEBUG": False,
    "INSTALLED_APPS": [
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "abuseguard_django",
    ],
    "MIDDLEWARE": [MIDDLEWARE],
    "ROOT_URLCONF": __name__,
    "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
}


class Backend:
    """Users who are kept nowhere, but like those of a database are out of reach on an event loop."""

    loaded = 0

    @async_unsafe
    def get_user(self, user_id: int) -> Any:
        from django.contrib.auth.models import User

        Backend.loaded += 1
        return User(pk=user_id, username=f"user {user_id}")

    async def aget_user(self, user_id: int) -> Any:
        return await sync_to_async(self.get_user)(user_id)


def session_cookie(user_id: int) -> str:
    """The cookie of a session in which that user has logged in."""
    from django.contrib import auth
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.signed_cookies import SessionStore

    session = SessionStore()
    session[auth.SESSION_KEY] = str(user_id)
    session[auth.BACKEND_SESSION_KEY] = f"{__name__}.Backend"
    session[auth.HASH_SESSION_KEY] = User(pk=user_id).get_session_auth_hash()
    session.save()
    return f"sessionid={session.session_key}"


class Named:
    """A user, as an authentication of one's own leaves it."""

    def __init__(self, name: str) -> None:
        self.username = name


def authentication(get_response):
    """A middleware that finds users."""

    def middleware(request: HttpRequest) -> HttpResponse:
        name = request.headers.get("X-User")
        request.user = None if name is None else Named(name)
        return get_response(request)

    return middleware


def short_cut(get_response):
    """A middleware that answers by itself."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.path != "/short-cut":
            return get_response(request)
        response = HttpResponse("short cut")
        response._resource_closers.append(lambda: closed.append(response))
        return response

    return middleware


closed: list[HttpResponse] = []


def reading(get_response):
    """A middleware that reads the request's body."""

    def middleware(request: HttpRequest) -> HttpResponse:
        assert isinstance(request.body, bytes)
        return get_response(request)

    return middleware


def blocking(get_response):
    """A middleware that can only block, so that under ASGI all that is outside of it is called in a thread."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    return middleware


blocking.async_capable = False


def hiding(view):
    """A decorator that forgets what others have written on the view."""

    def hidden(request):
        return view(request)

    return hidden


def ok(request, name=None):
    return HttpResponse("ok")


def fail(request):
    raise ZeroDivisionError


def echo(request):
    return HttpResponse(request.body)


def chat(request):
    return JsonResponse(CHAT)


def messages(request):
    return JsonResponse(MESSAGE)


def failing_stream():
    yield from EVENTS[:2]
    raise ZeroDivisionError


def stream(request):
    return StreamingHttpResponse((event for event in EVENTS), content_type="text/event-stream")


def stream_raises(request):
    return StreamingHttpResponse(failing_stream(), content_type="text/event-stream")


@limit("2/hour")
def limited(request):
    return HttpResponse("ok")


@limit("2/hour")
async def limited_async(request):
    return HttpResponse("ok")


@method_decorator(limit("2/hour"), name="dispatch")
class Limited(View):
    def get(self, request):
        return HttpResponse("ok")


class LimitedMethod(View):
    @method_decorator(limit("2/hour"))
    def get(self, request):
        return HttpResponse("ok")


class LimitedToo(LimitedMethod):
    """Inherits a limited method, with a bucket of its own."""


class LimitedAsyncMethod(View):
    @method_decorator(limit("2/hour"))
    async def get(self, request):
        return HttpResponse("ok")


@hiding
@limit("2/hour")
def hidden(request):
    return HttpResponse("ok")


@limit("2/hour", name="shared")
def shared_1(request):
    return HttpResponse("ok")


@limit("2/hour", name="shared")
def shared_2(request):
    return HttpResponse("ok")


@limit("3/hour")
@limit("2/day")
def twice(request):
    return HttpResponse("ok")


@limit("3/hour", cost=2)
def costly(request):
    return HttpResponse("ok")


@limit("200/day", unit="tokens")
def chat_limited(request):
    return JsonResponse(CHAT)


@exempt
def exempt_view(request):
    return HttpResponse("ok")


@method_decorator(exempt, name="dispatch")
class Exempt(View):
    def get(self, request):
        return HttpResponse("ok")


def file(request):
    return FileResponse(io.BytesIO(b"a file"), content_type="text/plain")


def body(request):
    """What became of the request's body."""
    try:
        return HttpResponse(request.body)
    except (OSError, SuspiciousOperation) as error:
        return HttpResponse(type(error).__name__)


async def hang(request):
    request.scope["hanging"].set()
    await asyncio.sleep(3600)


async def async_ok(request, name=None):
    return HttpResponse("ok")


async def async_stream(request):
    async def events():
        for event in EVENTS:
            yield event

    return StreamingHttpResponse(events(), content_type="text/event-stream")


async def async_stream_raises(request):
    async def events():
        for event in failing_stream():
            await asyncio.sleep(0)
            yield event

    return StreamingHttpResponse(events(), content_type="text/event-stream")


urlpatterns: list[Any] = [
    path("", ok),
    path("other", ok),
    path("items/<str:name>", ok),
    path("raises", fail),
    path("failing-chat", fail),
    path("echo", echo),
    path("chat", chat),
    path("messages", messages),
    path("stream", stream),
    path("stream-raises", stream_raises),
    path("sync-stream", stream),
    path("async-stream", async_stream),
    path("limited", limited),
    path("limited-async", limited_async),
    path("limited-class", Limited.as_view()),
    path("limited-method", LimitedMethod.as_view()),
    path("limited-too", LimitedToo.as_view()),
    path("limited-async-method", LimitedAsyncMethod.as_view()),
    path("made-1", limit("2/hour")(lambda request: HttpResponse("ok"))),
    path("made-2", limit("2/hour")(lambda request: HttpResponse("ok"))),
    path("made-3", hiding(limit("2/hour")(lambda request: HttpResponse("ok")))),
    path("made-4", hiding(limit("2/hour")(lambda request: HttpResponse("ok")))),
    path("hidden", hidden),
    path("shared-1", shared_1),
    path("shared-2", shared_2),
    path("twice", twice),
    path("costly", costly),
    path("chat-limited", chat_limited),
    path("exempt", exempt_view),
    path("exempt-class", Exempt.as_view()),
    path("file", file),
    path("body", body),
    path("hang", hang),
    path("body-json", lambda request: HttpResponse(json.loads(request.body)["max_tokens"])),
]


class AsyncUrls:
    """The same paths, for ASGI."""

    urlpatterns = (
        path("", async_ok),
        path("items/<str:name>", async_ok),
        path("stream", async_stream),
        path("stream-raises", async_stream_raises),
        *urlpatterns,
    )
