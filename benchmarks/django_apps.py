"""The same Django project bare, guarded, and behind each peer, with the limits and rules of ``asgi_apps``.

A process has one project, but a handler has the middleware and a request the URLs that are set when it is made: a
contender is a handler with a set of URLs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import django
from django.conf import settings

from benchmarks.asgi_apps import LIMITS
from benchmarks.requests import PATH

settings.configure(
    ALLOWED_HOSTS=["*"],
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    INSTALLED_APPS=["rest_framework"],
    MIDDLEWARE=[],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
    ROOT_URLCONF=None,
    SECRET_KEY="benchmarks",
    USE_I18N=False,
    ABUSEGUARD={"LIMITS": LIMITS},
)
django.setup()

from django.core.cache import cache  # noqa: E402 - needs the settings
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django_ratelimit.decorators import ratelimit  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.throttling import AnonRateThrottle  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

# Only the first letter of a period counts in both.
_SHORT_LIMITS = [limit.replace("minute", "m").replace("hour", "h") for limit in LIMITS]


def models(request: Any) -> JsonResponse:
    return JsonResponse({"status": "ok"})


class RestModels(APIView):
    def get(self, request: Any) -> Response:
        return Response({"status": "ok"})


class _ThrottleOne(AnonRateThrottle):
    scope = "one"
    rate = _SHORT_LIMITS[0]


class _ThrottleTwo(AnonRateThrottle):
    scope = "two"
    rate = _SHORT_LIMITS[1]


class ThrottledRestModels(RestModels):
    throttle_classes = (_ThrottleOne, _ThrottleTwo)


class Urls:
    """What Django takes for the module of a project's URLs."""

    def __init__(self, view: Any) -> None:
        self.urlpatterns = [path(PATH.lstrip("/"), view)]


def project(view: Any, *middleware: str) -> Callable[[Any, Any], Any]:
    """A WSGI application of its own."""
    urls = Urls(view)
    settings.MIDDLEWARE = list(middleware)
    handler = WSGIHandler()

    def app(environ: Any, start_response: Any) -> Any:
        settings.ROOT_URLCONF = urls
        return handler(environ, start_response)

    return app


def with_django_ratelimit() -> Callable[[Any, Any], Any]:
    """Has no fields."""
    limited = models
    for rate in _SHORT_LIMITS:
        limited = ratelimit(group=rate, key="ip", rate=rate)(limited)
    return project(limited)


def forget_everything() -> None:
    """DRF keeps, and copies for every request, the times of all requests of a client: a round's are few."""
    cache.clear()


APPS: dict[str, Callable[[], Any]] = {
    "DRF": lambda: project(RestModels.as_view()),
    "DRF throttling": lambda: project(ThrottledRestModels.as_view()),
    "django-ratelimit": with_django_ratelimit,
    "bare": lambda: project(models),
    "abuseguard": lambda: project(models, "abuseguard_django.middleware.AbuseGuardMiddleware"),
}
