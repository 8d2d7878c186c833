"""The documentation: its examples run, its settings are settings, and every setting is in it."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import re
import sys
import types
from pathlib import Path

import pytest

import abuseguard
from abuseguard import Limit, Settings, SettingsError
from abuseguard.settings import setting_names

ROOT = Path(__file__).parents[1]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
# Pages of commands, whose examples are excerpts of what `abuseguard demo` and the benchmarks themselves run.
EXCERPTS = ("docs/demo.md", "docs/benchmarks.md")


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def all_blocks(language):
    return [
        pytest.param(page, line, source, id=f"{page}:{line}")
        for page in DOCS
        for line, source in blocks(page, language)
    ]


class Shop(types.ModuleType):
    """The module of the operator that examples name functions of."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None


@pytest.fixture(autouse=True)
def _shop(monkeypatch):
    for name in ("shop", "shop.limits", "shop.metrics"):
        monkeypatch.setitem(sys.modules, name, Shop(name))


def run(page, line, source):
    """Runs an example as a module, with what its page says is there already."""
    namespace = {"__name__": f"example_{line}"}
    if page in EXCERPTS:
        from fastapi import FastAPI

        from abuseguard_fastapi import AbuseGuardMiddleware

        namespace |= {name: getattr(abuseguard, name) for name in abuseguard.__all__}
        namespace |= {"app": FastAPI(), "AbuseGuardMiddleware": AbuseGuardMiddleware}
    exec(compile("\n" * (line - 1) + source, page, "exec"), namespace)
    return namespace


def test_there_are_pages():
    assert len(DOCS) > 10
    assert len(all_blocks("python")) > 30


@pytest.mark.parametrize(
    ("page", "line", "source"), [block for block in all_blocks("python") if ">>>" not in block.values[2]]
)
def test_examples_run(page, line, source):
    namespace = run(page, line, source)
    # Django's settings are only read when a project starts.
    if "ABUSEGUARD" in namespace:
        assert Settings.from_mapping(namespace["ABUSEGUARD"]).limits


@pytest.mark.parametrize(
    "page", [page for page in DOCS if any(">>>" in source for _, source in blocks(page, "python"))]
)
def test_sessions_show_what_they_say(page):
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    sessions = "".join(
        "\n" * (line - 1) * (number == 0) + source
        for number, (line, source) in enumerate(block for block in blocks(page, "python") if ">>>" in block[1])
    )
    runner.run(parser.get_doctest(sessions, {}, page, page, 0))
    assert runner.tries > 0
    assert runner.failures == 0


@pytest.mark.parametrize(("page", "line", "source"), all_blocks("toml"))
def test_toml_is_settings(page, line, source, tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(source)
    assert Settings.from_toml(path).limits


@pytest.mark.parametrize(
    ("page", "line", "source"), [block for block in all_blocks("sh") if "ABUSEGUARD_" in block.values[2]]
)
def test_variables_are_settings(page, line, source):
    variables = dict(re.findall(r'^(\w+)="(.*)"$', source, re.MULTILINE))
    assert len(variables) == source.count("\n")
    assert Settings.from_environment(variables).limits


def section(heading, field):
    """The paragraph of one field: its list, and what follows until the next heading."""
    part = SETTINGS.partition(f"## Fields of `{heading}`\n")[2].partition("\n## ")[0]
    match = re.search(rf"^### `{field}`\n\n((?:- [^\n]*\n)+)\n(.*?)(?=^###|\Z)", part, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/settings.md does not tell of {heading}.{field}"
    told = dict(re.findall(r"^- (\w+): (.*)$", match[1], re.MULTILINE))
    assert match[2].strip(), f"docs/settings.md does not tell what {heading}.{field} means"
    return told


def code(text):
    match = re.fullmatch(r"`(.*)`", text)
    assert match is not None, text
    return match[1]


@pytest.mark.parametrize("field", setting_names())
class TestEverySetting:
    def test_has_its_type_and_default(self, field):
        told = section("Settings", field)
        assert told["type"]
        assert eval(code(told["default"]), vars(abuseguard).copy()) == getattr(Settings(), field)

    def test_has_an_example_that_is_one(self, field):
        example = code(section("Settings", field)["example"])
        assert [keyword.arg for keyword in ast.parse(f"f({example})").body[0].value.keywords] == [field]
        settings = eval(f"Settings({example})", vars(abuseguard).copy())
        assert getattr(settings, field) != getattr(Settings(), field)

    def test_has_a_variable_that_sets_it(self, field):
        told = section("Settings", field)["environment"]
        if field == "store_options":
            assert told == "none"
            return
        variable, _, text = code(told).partition("=")
        assert variable == f"ABUSEGUARD_{field.upper()}"
        assert getattr(Settings.from_environment({variable: text}), field) != getattr(Settings(), field)


LIMIT_FIELDS = [field for field in dataclasses.fields(Limit) if field.init]


@pytest.mark.parametrize("field", LIMIT_FIELDS, ids=lambda field: field.name)
class TestEveryFieldOfALimit:
    def test_has_its_type_and_default(self, field):
        told = section("Limit", field.name)
        assert told["type"]
        if field.default is dataclasses.MISSING:
            assert told["default"] == "none"
        else:
            assert eval(code(told["default"])) == field.default

    def test_has_an_example_that_is_one(self, field):
        limit = eval(code(section("Limit", field.name)["example"]), vars(abuseguard).copy())
        assert isinstance(limit, Limit)
        if field.default is not dataclasses.MISSING:
            assert getattr(limit, field.name) != getattr(Limit("5/minute"), field.name)


@pytest.mark.parametrize(
    ("heading", "fields"), [("Settings", setting_names()), ("Limit", [f.name for f in LIMIT_FIELDS])]
)
def test_nothing_is_told_that_is_no_field(heading, fields):
    part = SETTINGS.partition(f"## Fields of `{heading}`\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### `(\w+)`$", part, re.MULTILINE) == list(fields)


@pytest.mark.parametrize("field", ["max_keys", "ipv6_prefix", "workers", "default_output_tokens", "max_body_bytes"])
def test_bounds_that_are_told_are_those_that_hold(field):
    least, most = (
        int(bound.replace(",", "")) for bound in re.findall(r"[\d,]{1,}\d|\d", section("Settings", field)["type"])
    )
    for allowed in (least, most):
        Settings(**{field: allowed})
    for refused in (least - 1, most + 1):
        with pytest.raises(SettingsError):
            Settings(**{field: refused})


def test_the_table_of_path_patterns():
    from abuseguard.path_pattern import path_matcher

    rows = re.findall(r"^\| `([^`]+)` \| (`/.*?) \| (`/.*?) \|$", (ROOT / "docs/limits.md").read_text(), re.MULTILINE)
    assert len(rows) == 4
    for pattern, matching, others in rows:
        matches = path_matcher([pattern])
        assert all(matches(path) for path in re.findall(r"`([^`]+)`", matching))
        assert not any(matches(path) for path in re.findall(r"`([^`]+)`", others))


def test_the_fields_of_the_example_of_responses():
    from abuseguard import RequestFacts
    from abuseguard.clock import ManualClock
    from abuseguard.guard import Guard

    (_, example), *_ = blocks("docs/responses.md", "")
    guard = Guard(
        Settings(
            limits=["600/minute burst=50", "200000/hour unit=tokens"],
            estimate=lambda facts: 3580,
        ),
        clock=ManualClock(),
    )
    fields = guard.fields(guard.decide(RequestFacts("GET", "/", peer="203.0.113.9")))
    assert example.splitlines() == [f"{name}: {value}" for name, value in fields]


def test_the_denial_of_the_example_of_responses():
    import json

    from abuseguard import RequestFacts
    from abuseguard.clock import ManualClock
    from abuseguard.guard import Guard

    _, (_, example) = blocks("docs/responses.md", "")
    guard = Guard(Settings(limits=["5/minute"]), clock=ManualClock())
    facts = RequestFacts("GET", "/", peer="203.0.113.9")
    answer = [guard.answer(facts, guard.decide(facts)) for _ in range(6)][-1]
    head, _, body = example.partition("\n\n")
    assert json.loads(body) == json.loads(answer.body)
    told = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    sent = dict(answer.headers)
    assert told.pop("Retry-After") == "13"
    assert 12 <= int(sent.pop("Retry-After")) <= 14
    assert told == sent


def test_decisions_are_listed_in_their_order():
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (ROOT / "docs/decisions/README.md").read_text())
    assert len(listed) >= 6
    assert listed == sorted(listed)
    assert all((ROOT / "docs/decisions" / name).exists() for name in listed)


def test_decisions_that_the_source_names_are_there():
    named = {
        path
        for folder in ("abuseguard", "adapters")
        for source in (ROOT / folder).rglob("*.py")
        for path in re.findall(r"docs/[\w/-]+\.md", source.read_text(encoding="utf-8"))
    }
    assert named
    assert all((ROOT / path).exists() for path in named)
