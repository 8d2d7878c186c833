"""What ``manage.py check`` says of the settings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import django
import pytest
from django.core.checks import run_checks
from django.test import override_settings

from abuseguard import Limit, Settings, User

GUARD = "abuseguard_django.middleware.AbuseGuardMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
APPLICATIONS = ["django.contrib.auth", "django.contrib.contenttypes", "abuseguard_django"]


@pytest.fixture(scope="module", autouse=True)
def _applications() -> Iterator[None]:
    django.setup()
    with override_settings(INSTALLED_APPS=APPLICATIONS, MIDDLEWARE=[GUARD]):
        yield


def messages(**settings: object) -> list[tuple[str, str]]:
    with override_settings(**settings):
        return [
            (message.id, message.msg) for message in run_checks() if message.id and message.id.startswith("abuseguard")
        ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limits": ["600/minute burst=50", {"rate": "5/minute", "routes": "/login"}], "account": "user:email"},
        {"LIMITS": [Limit("600/minute")], "Store": "redis://127.0.0.1:6379/0", "mode": "observe"},
        Settings(limits=["600/minute"]),
        None,
    ],
)
def test_good_settings_are_passed_over(settings):
    assert messages(ABUSEGUARD=settings) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "sleep"}, "mode: got 'sleep', expected one of 'enforce', 'observe'."),
        (
            {"limits": ["often"]},
            "limits[0].rate: got 'often', expected a rate such as '600/minute' or '90 per 2 hours'.",
        ),
        ({"LIMITS": ["1/minute", {"rate": "1/hour", "burst": 0}]}, "limits[1].burst: got 0, expected a whole number"),
        ({"workers": "2"}, "workers: got '2', expected a whole number from 1 to 100000."),
        ({"trusted_proxies": ["nowhere"]}, "trusted_proxies[0]: got 'nowhere', expected"),
        ({"account": "who"}, "account: got 'who', expected a function of the facts, "),
        ({"store": "mysql://"}, "store: got 'mysql://', expected a URI of the scheme memory, redis, "),
        ({"limit": "1/minute"}, "limit: got '1/minute', expected one of the settings limits, store, "),
        ({7: 1}, "7: got 1, expected one of the settings limits, "),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(settings, expected):
    ((identifier, message),) = messages(ABUSEGUARD=settings)
    assert identifier == "abuseguard.E002"
    assert message.startswith(f"ABUSEGUARD: {expected}")


def test_all_wrong_settings_are_told_at_once():
    found = messages(ABUSEGUARD={"mode": "sleep", "headers": "all", "limits": ["1/minute"]})
    assert [message.partition(" got")[0] for _, message in found] == ["ABUSEGUARD: mode:", "ABUSEGUARD: headers:"]


def test_settings_that_do_not_go_together_are_told():
    ((identifier, message),) = messages(ABUSEGUARD={"limits": ["1/minute", "1/minute"]})
    assert (identifier, "a name that no other limit has" in message) == ("abuseguard.E002", True)


@pytest.mark.parametrize("settings", [["1/minute"], "1/minute", 7])
def test_what_is_no_mapping_is_told(settings):
    ((identifier, message),) = messages(ABUSEGUARD=settings)
    assert identifier == "abuseguard.E001"
    assert message.startswith(f"ABUSEGUARD: got {settings!r}, expected a mapping")


def test_the_environment_is_checked_where_there_are_no_settings(monkeypatch):
    monkeypatch.setenv("ABUSEGUARD_MODE", "sleep")
    ((identifier, message),) = messages(ABUSEGUARD=None)
    assert (identifier, message.partition(",")[0]) == ("abuseguard.E002", "ABUSEGUARD: ABUSEGUARD_MODE: got 'sleep'")


def test_a_missing_library_is_told(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "valkey" else find_spec(name))
    assert messages(ABUSEGUARD={"store": "valkey://127.0.0.1"}) == [
        ("abuseguard.E003", "ABUSEGUARD: store: valkey is not installed: pip install 'abuseguard[valkey]'.")
    ]


def test_a_missing_middleware_is_told():
    ((identifier, _),) = messages(ABUSEGUARD={}, MIDDLEWARE=[AUTHENTICATION, "nowhere.Middleware"])
    assert identifier == "abuseguard.W001"


@pytest.mark.parametrize(
    ("account", "middleware", "expected"),
    [
        ("user", [GUARD, AUTHENTICATION], ["abuseguard.W002"]),
        (User(), [GUARD, AUTHENTICATION], ["abuseguard.W002"]),
        ("user", [AUTHENTICATION, GUARD], []),
        ("user", [GUARD], []),  # users may come from elsewhere
        ("address", [GUARD, AUTHENTICATION], []),
    ],
)
def test_a_middleware_that_stands_before_the_users_is_told(account, middleware, expected):
    settings = {"account": account}
    assert [identifier for identifier, _ in messages(ABUSEGUARD=settings, MIDDLEWARE=middleware)] == expected


PROJECT = """
SECRET_KEY = "not a secret"
INSTALLED_APPS = ["abuseguard_django"]
MIDDLEWARE = ["abuseguard_django.middleware.AbuseGuardMiddleware"]
"""


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ('{"LIMITS": ["600/minute burst=50"], "MODE": "observe"}', 0, "no issues"),
        (
            '{"MODE": "sleep"}',
            1,
            "(abuseguard.E002) ABUSEGUARD: mode: got 'sleep', expected one of 'enforce', 'observe'.",
        ),
    ],
)
def test_manage_py_check(tmp_path, settings, code, said):
    (tmp_path / "project_settings.py").write_text(f"{PROJECT}\nABUSEGUARD = {settings}\n")
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    command = [sys.executable, "-m", "django", "check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done
