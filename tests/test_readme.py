"""The README's quickstarts, run as they stand there: each tells its limits, and refuses what is too much."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abuseguard import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BURST = 50


def quickstart(framework):
    match = re.search(rf"<!-- quickstart {framework} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert match is not None, framework
    return match[1]


def run(framework):
    namespace = {"__name__": f"quickstart_{framework}"}
    exec(compile(quickstart(framework), f"README.md: {framework}", "exec"), namespace)
    return namespace


def assert_limited(responses):
    """Responses as (status, fields, body): 50 that tell the limit, then one that is refused."""
    *allowed, denied = responses
    assert len(allowed) == BURST
    for number, (status, fields, body) in enumerate(allowed, start=1):
        assert status == 200
        assert json.loads(body) == {"hello": "world"}
        assert fields["ratelimit-policy"] == '"600-per-minute";q=50;w=5'
        remaining = re.fullmatch(r'"600-per-minute";r=(\d+);t=\d+', fields["ratelimit"])
        assert remaining is not None
        # As time goes by while the test runs, the bucket gains some.
        assert BURST - number <= int(remaining[1]) < BURST
    status, fields, body = denied
    assert status == 429
    assert int(fields["retry-after"]) >= 1
    assert fields["content-type"] == "application/problem+json"
    assert json.loads(body)["violated-policies"] == ["600-per-minute"]


def until_denied(ask):
    """Responses until one is refused; the bucket gains one every 0.1 s while they are asked for."""
    responses = []
    while not responses or responses[-1][0] != 429:
        responses.append(ask())
        assert len(responses) < 20 * BURST
    return [*responses[:BURST], responses[-1]]


def test_fastapi():
    import httpx

    transport = httpx.ASGITransport(run("fastapi")["app"])

    async def get():
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
            response = await client.get("/")
            return response.status_code, response.headers, response.content

    assert_limited(until_denied(lambda: asyncio.run(get())))


def test_flask():
    client = run("flask")["app"].test_client()

    def ask():
        response = client.get("/")
        return response.status_code, {name.lower(): value for name, value in response.headers}, response.data

    assert_limited(until_denied(ask))


# Django's settings belong to a process, so this one has its own.
DJANGO_PROJECT = """
import json, sys
import django
from django.conf import settings
from django.core.management import call_command
from django.http import JsonResponse
from django.test import Client
from django.urls import path

namespace = {}
exec(sys.argv[1], namespace)
chosen = {name: value for name, value in namespace.items() if name.isupper()}
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", USE_TZ=True, **chosen)
django.setup()
urlpatterns = [path("", lambda request: JsonResponse({"hello": "world"}))]
call_command("check", "--fail-level", "WARNING", stdout=sys.stderr)
client = Client()
responses = []
while not responses or responses[-1][0] != 429:
    response = client.get("/")
    fields = {name.lower(): value for name, value in response.headers.items()}
    responses.append([response.status_code, fields, response.content.decode()])
print(json.dumps(responses))
"""


def test_django():
    import django  # noqa: F401 - skips where it was left out on purpose

    shown = subprocess.run(
        [sys.executable, "-c", DJANGO_PROJECT, quickstart("django")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
        timeout=60,
    )
    responses = json.loads(shown.stdout)
    assert_limited([*responses[:BURST], responses[-1]])


def test_the_django_settings_are_those_of_the_others():
    from_django = Settings.from_mapping(run("django")["ABUSEGUARD"])
    assert from_django == Settings(limits=["600/minute burst=50"])


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README)) | set(re.findall(r"`(tests/[^`]*)`", README)))
)
def test_every_file_it_names_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+#[^)]+)\)", README))))
def test_every_heading_it_links_to_is_there(link):
    path, _, anchor = link.partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
