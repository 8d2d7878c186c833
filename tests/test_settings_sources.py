"""Settings from where operators keep them, each source giving the same settings and refusing the same faults."""

from __future__ import annotations

import os
import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import ApiKey, Header, Limit, Settings, SettingsError, User
from abuseguard.settings import setting_names

HERE = __name__


def never(facts):
    return False


def plan_of(facts):
    return "free"


def key_of(facts):
    return "key"


def two(facts):
    return 2


def answer(facts, decision, default):
    return default


def observe(facts, decision):
    pass


def dynamic(facts):
    return "9/minute"


async def asynchronous(facts):
    return None


# Tests are imported under names of their own; functions are named by where they can be imported from.
@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    module = sys.modules.get(HERE) or __import__(HERE, fromlist=["x"])
    monkeypatch.setitem(sys.modules, "operators_module", module)


# One value for every setting that is not its default, as code, as text of the environment and as TOML has it.
EVERY_SETTING = {
    "limits": (
        ["600/minute burst=50", "9000/day unit=tokens"],
        "600/minute burst=50; 9000/day unit=tokens",
        '["600/minute burst=50", "9000/day unit=tokens"]',
    ),
    "store": ("redis://localhost:6379/0", "redis://localhost:6379/0", '"redis://localhost:6379/0"'),
    "store_options": ({"health_check_interval": 5}, None, "{ health_check_interval = 5 }"),
    "key_prefix": ("shop", "shop", '"shop"'),
    "max_keys": (1000, "1000", "1000"),
    "account": ("header:x-user", "header:x-user", '"header:x-user"'),
    "plan": ("header:x-plan", "header:x-plan", '"header:x-plan"'),
    "trusted_proxies": (["10.0.0.0/8", "unix"], "10.0.0.0/8, unix", '["10.0.0.0/8", "unix"]'),
    "forwarded_header": ("forwarded", "Forwarded", '"forwarded"'),
    "ipv6_prefix": (56, "56", "56"),
    "missing_address": ("deny", "deny", '"deny"'),
    "exempt_paths": (["/healthz", "/static/**"], "/healthz; /static/**", '["/healthz", "/static/**"]'),
    "exempt_accounts": (["root", "ci"], "root,ci", '["root", "ci"]'),
    "exempt_networks": (["192.0.2.0/24"], "192.0.2.0/24", '["192.0.2.0/24"]'),
    "exempt": ("operators_module:never", "operators_module:never", '"operators_module:never"'),
    "mode": ("observe", "observe", '"observe"'),
    "on_store_failure": ("local", "local", '"local"'),
    "workers": (4, "4", "4"),
    "store_timeout_seconds": (0.2, "0.2", "0.2"),
    "headers": ("both", "both", '"both"'),
    "response": ("operators_module:answer", "operators_module:answer", '"operators_module:answer"'),
    "retry_after_jitter": (0.5, ".5", "0.5"),
    "max_delay_seconds": (2.0, "2", "2.0"),
    "estimate": ("operators_module:two", "operators_module:two", '"operators_module:two"'),
    "default_output_tokens": (256, "256", "256"),
    "max_body_bytes": (2048, "2048", "2048"),
    "secret": ("s3cret", "s3cret", '"s3cret"'),
    "observer": ("operators_module:observe", "operators_module:observe", '"operators_module:observe"'),
}


def test_no_setting_is_left_out_here():
    assert tuple(EVERY_SETTING) == setting_names()


def as_code(name):
    """The value as a program gives it: functions themselves."""
    value = EVERY_SETTING[name][0]
    if isinstance(value, str) and value.startswith("operators_module:"):
        return globals()[value.partition(":")[2]]
    return value


@pytest.mark.parametrize("name", EVERY_SETTING)
class TestEverySetting:
    def test_is_not_the_default_here(self, name):
        assert getattr(Settings(**{name: as_code(name)}), name) != getattr(Settings(), name)

    def test_from_a_mapping(self, name):
        value = EVERY_SETTING[name][0]
        expected = Settings(**{name: as_code(name)})
        for key in (name, name.upper(), name.title()):
            assert Settings.from_mapping({key: value}) == expected
        assert Settings.from_mapping({name: as_code(name)}) == expected

    def test_from_the_environment(self, name):
        text = EVERY_SETTING[name][1]
        if text is None:
            with pytest.raises(SettingsError, match=r"^ABUSEGUARD_STORE_OPTIONS: "):
                Settings.from_environment({f"ABUSEGUARD_{name.upper()}": "{}"})
        else:
            settings = Settings.from_environment({f"ABUSEGUARD_{name.upper()}": text})
            assert settings == Settings(**{name: as_code(name)})

    @pytest.mark.parametrize("table", ["", "[abuseguard]", "[tool.abuseguard]"])
    def test_from_toml(self, name, table, tmp_path):
        path = tmp_path / "settings.toml"
        path.write_text(f"{table}\n{name} = {EVERY_SETTING[name][2]}\n")
        assert Settings.from_toml(path) == Settings(**{name: as_code(name)})


def test_everything_at_once(tmp_path):
    expected = Settings(**{name: as_code(name) for name in EVERY_SETTING})
    assert Settings.from_mapping({name.upper(): value for name, (value, *_) in EVERY_SETTING.items()}) == expected
    path = tmp_path / "settings.toml"
    path.write_text("".join(f"{name} = {toml}\n" for name, (_, _, toml) in EVERY_SETTING.items()))
    assert Settings.from_toml(path) == expected


class TestMapping:
    def test_nothing_is_the_default(self):
        assert Settings.from_mapping({}) == Settings()

    def test_settings_stay_as_they_are(self):
        settings = Settings(limits=["5/minute"])
        assert Settings.from_mapping(settings) is settings

    @pytest.mark.parametrize("wrong", [None, 5, "text", [("mode", "observe")], object()])
    def test_what_is_no_mapping(self, wrong):
        with pytest.raises(SettingsError) as caught:
            Settings.from_mapping(wrong)
        assert caught.value.value is wrong

    @pytest.mark.parametrize("key", ["LIMIT", "limitss", "addresses", "exempt_hosts", "", 5, None, ("limits",)])
    def test_unknown_names_are_refused_with_those_that_are_known(self, key):
        with pytest.raises(SettingsError) as caught:
            Settings.from_mapping({key: 5})
        assert caught.value.field == str(key)
        for name in setting_names():
            assert name in caught.value.allowed

    def test_each_setting_once(self):
        with pytest.raises(SettingsError, match=r"^MODE: got 'observe', expected each setting once"):
            Settings.from_mapping({"mode": "enforce", "MODE": "observe"})

    @pytest.mark.parametrize("one", ["5/minute burst=2", {"rate": "5/minute", "burst": 2}])
    def test_one_limit_stands_for_a_sequence_of_one(self, one):
        assert Settings.from_mapping({"limits": one}).limits == (Limit("5/minute", burst=2),)

    def test_values_are_checked_as_in_code(self):
        with pytest.raises(SettingsError) as caught:
            Settings.from_mapping({"MODE": "observing"})
        assert (caught.value.field, caught.value.value) == ("mode", "observing")


class TestFunctionsByName:
    def test_limits(self):
        settings = Settings.from_mapping({"limits": ["operators_module:dynamic", "5/minute"]})
        assert settings.limits == (dynamic, Limit("5/minute"))

    def test_of_a_limit(self):
        limit = {
            "rate": "5/minute",
            "when": "operators_module:never",
            "per": "operators_module:key_of",
            "cost": "operators_module:two",
        }
        settings = Settings.from_mapping({"limits": [limit]})
        assert settings.limits == (Limit("5/minute", when=never, per=key_of, cost=two),)
        assert limit["when"] == "operators_module:never"

    def test_accounts_and_plans(self):
        settings = Settings.from_mapping({"account": "operators_module:key_of", "plan": "operators_module:plan_of"})
        assert (settings.account, settings.plan) == (key_of, plan_of)

    @pytest.mark.parametrize(
        "path",
        [
            "no.such.module:function",
            "operators_module:nothing",
            "operators_module:HERE",
            "operators_module:asynchronous",
        ],
    )
    @pytest.mark.parametrize(
        ("wrap", "field"),
        [
            (lambda path: {"exempt": path}, "exempt"),
            (lambda path: {"response": path}, "response"),
            (lambda path: {"estimate": path}, "estimate"),
            (lambda path: {"observer": path}, "observer"),
            (lambda path: {"account": path}, "account"),
            (lambda path: {"plan": path}, "plan"),
            (lambda path: {"limits": ["5/minute", path]}, "limits[1]"),
            (lambda path: {"limits": [{"rate": "5/minute", "when": path}]}, "limits[0].when"),
            (lambda path: {"limits": [{"rate": "5/minute", "per": path}]}, "limits[0].per"),
            (lambda path: {"limits": [{"rate": "5/minute", "cost": path}]}, "limits[0].cost"),
        ],
    )
    def test_what_cannot_be_had_is_named(self, path, wrap, field):
        with pytest.raises(SettingsError) as caught:
            Settings.from_mapping(wrap(path))
        assert caught.value.field == field

    @pytest.mark.parametrize("source", ["import no_such_thing", "raise KeyError('no_such_thing')", "no_such_thing ="])
    def test_a_module_that_fails_when_it_is_imported(self, source, tmp_path, monkeypatch):
        (tmp_path / "broken_operator.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(SettingsError, match="that can be imported") as caught:
            Settings.from_mapping({"exempt": "broken_operator:f"})
        assert caught.value.__cause__ is not None

    @pytest.mark.parametrize("path", [":", "a:", ":a", ".:a", ".", "..a:b", "a b:c", "\0:a", "json:dumps.x"])
    def test_what_is_no_name(self, path):
        with pytest.raises(SettingsError) as caught:
            Settings.from_mapping({"exempt": path})
        assert caught.value.value == path


class TestEnvironment:
    def test_of_the_process_by_default(self, monkeypatch):
        for name in os.environ:
            if name.startswith("ABUSEGUARD_"):
                monkeypatch.delenv(name)
        assert Settings.from_environment() == Settings()
        monkeypatch.setenv("ABUSEGUARD_LIMITS", "5/minute")
        assert Settings.from_environment().limits == (Limit("5/minute"),)

    def test_other_variables_are_not_ours(self):
        assert (
            Settings.from_environment({"PATH": "/bin", "XABUSEGUARD_MODE": "x", "abuseguard_mode": "x"}) == Settings()
        )

    @pytest.mark.parametrize("text", ["5/minute; 6/hour", "5/minute;6/hour;", "\n5/minute\n6/hour\n"])
    def test_several_limits(self, text):
        settings = Settings.from_environment({"ABUSEGUARD_LIMITS": text})
        assert [limit.rate for limit in settings.limits] == ["5/minute", "6/hour"]

    def test_limits_with_functions_by_name(self):
        settings = Settings.from_environment({"ABUSEGUARD_LIMITS": "operators_module:dynamic; 5/minute"})
        assert settings.limits == (dynamic, Limit("5/minute"))

    @pytest.mark.parametrize("text", ["", " ", ";", "\n"])
    def test_no_limits(self, text):
        assert Settings.from_environment({"ABUSEGUARD_LIMITS": text}).limits == ()

    @pytest.mark.parametrize(("text", "count"), [("2", 2), (" 2 ", 2), ("0", 0)])
    def test_a_number_of_proxies(self, text, count):
        assert Settings.from_environment({"ABUSEGUARD_TRUSTED_PROXIES": text}).trusted_proxies == count

    @pytest.mark.parametrize(
        ("account", "expected"),
        [
            ("api-key", ApiKey()),
            ("api-key:X-Api-Key", ApiKey("x-api-key")),
            ("header:X-User", Header("x-user")),
            ("user", User()),
            ("user:email", User("email")),
        ],
    )
    def test_accounts(self, account, expected):
        assert Settings.from_environment({"ABUSEGUARD_ACCOUNT": account}).account == expected

    @pytest.mark.parametrize(
        ("variable", "text", "allowed"),
        [
            ("ABUSEGUARD_WORKERS", "four", "a whole number"),
            ("ABUSEGUARD_WORKERS", "", "a whole number"),
            ("ABUSEGUARD_WORKERS", "1.5", "a whole number"),
            ("ABUSEGUARD_WORKERS", "0", "a whole number from 1 to 100000"),
            ("ABUSEGUARD_WORKERS", "9" * 5000, "a whole number"),
            ("ABUSEGUARD_STORE_TIMEOUT_SECONDS", "fast", "a number"),
            ("ABUSEGUARD_STORE_TIMEOUT_SECONDS", "nan", "a number from 0.001 to 60"),
            ("ABUSEGUARD_STORE_TIMEOUT_SECONDS", "inf", "a number from 0.001 to 60"),
            ("ABUSEGUARD_TRUSTED_PROXIES", "-1", "a network"),
            ("ABUSEGUARD_TRUSTED_PROXIES", "²", "a network"),
            ("ABUSEGUARD_TRUSTED_PROXIES", "99", "a number of proxies from 0 to 32"),
            ("ABUSEGUARD_MODE", "Observe", "one of 'enforce', 'observe'"),
            ("ABUSEGUARD_EXEMPT_PATHS", "healthz", "path patterns"),
            ("ABUSEGUARD_MOOD", "observe", "one of the settings limits, store"),
            ("ABUSEGUARD_", "observe", "one of the settings limits, store"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_variable(self, variable, text, allowed):
        with pytest.raises(SettingsError) as caught:
            Settings.from_environment({variable: text})
        assert caught.value.field.partition("[")[0] == variable
        assert str(caught.value.value) == text
        assert allowed in caught.value.allowed

    def test_of_several_limits_the_wrong_one_is_named(self):
        with pytest.raises(SettingsError) as caught:
            Settings.from_environment({"ABUSEGUARD_LIMITS": "5/minute; often"})
        assert caught.value.field == "ABUSEGUARD_LIMITS[1]"
        assert caught.value.value == "often"

    @given(
        st.sampled_from([f"ABUSEGUARD_{name.upper()}" for name in setting_names()]),
        st.text(string.printable + "²é", max_size=30),
    )
    def test_any_text_is_settings_or_an_error_that_names_its_variable(self, variable, text):
        refused = None
        try:
            assert isinstance(Settings.from_environment({variable: text}), Settings)
        except SettingsError as error:
            refused = error
        assert refused is None or (refused.field.startswith(variable) and str(refused).startswith(variable))


class TestToml:
    def test_limits_as_tables(self, tmp_path):
        path = tmp_path / "abuseguard.toml"
        path.write_text(
            """
            mode = "observe"
            [[limits]]
            rate = "600/minute"
            burst = 50
            routes = ["/v1/**"]
            [[limits]]
            rate = "200000/hour"
            unit = "tokens"
            when = "operators_module:never"
            """
        )
        settings = Settings.from_toml(path)
        assert settings.mode == "observe"
        assert settings.limits == (
            Limit("600/minute", burst=50, routes=["/v1/**"]),
            Limit("200000/hour", unit="tokens", when=never),
        )

    def test_beside_other_tools(self, tmp_path):
        path = tmp_path / "pyproject.toml"
        path.write_text('[project]\nname = "shop"\n[tool.other]\nx = 1\n[tool.abuseguard]\nmode = "observe"\n')
        assert Settings.from_toml(str(path)).mode == "observe"

    @pytest.mark.parametrize(
        ("content", "field"),
        [
            (b"mode = ", "settings file"),
            (b"\xff\xfe", "settings file"),
            (b"mode = 'watch'", "mode"),
            (b"[abuseguard]\nmood = 1", "mood"),
            (b"[[limits]]\nrate = 'often'", "limits[0].rate"),
            (b"[project]\nname = 'x'", "project"),
            (b"limits = 5", "limits"),
            (b"store_timeout_seconds = nan", "store_timeout_seconds"),
            (b"[limits]\nrate = '5/minute'\nburst = 2.5", "limits[0].burst"),
        ],
    )
    def test_what_is_wrong_is_named(self, content, field, tmp_path):
        path = tmp_path / "abuseguard.toml"
        path.write_bytes(content)
        with pytest.raises(SettingsError) as caught:
            Settings.from_toml(path)
        assert caught.value.field == field

    @pytest.mark.parametrize("path", ["missing.toml", ".", None, 5, "\0", b"bytes"])
    def test_files_that_cannot_be_read(self, path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SettingsError) as caught:
            Settings.from_toml(path)
        assert caught.value.field == "settings file"
        assert caught.value.value == path
        assert "TOML" in caught.value.allowed
