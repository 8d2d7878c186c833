"""What the project promises about itself: its commands, its wheel, what an import costs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = {
    "click",
    "django",
    "fastapi",
    "flask",
    "h11",
    "httpx",
    "numba",
    "numpy",
    "redis",
    "rich",
    "uvicorn",
    "valkey",
}


def _readme_command(name: str) -> str:
    match = re.search(
        rf"^<!-- {name} command -->\n```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert match is not None, f"README.md has no {name} command"
    return match[1]


@pytest.mark.parametrize("name", ["demo", "test"])
def test_each_command_of_the_readme_is_one_line(name):
    assert _readme_command(name).count("\n") == 1


def test_ci_runs_the_test_command_of_the_readme():
    shown = subprocess.run([ROOT / ".ci" / "run", "--show"], capture_output=True, text=True, check=True)
    assert shown.stdout == _readme_command("test")
    assert "pytest" in shown.stdout


def test_each_extra_that_the_readme_installs_exists():
    metadata = importlib.metadata.metadata("abuseguard")
    for name in ("demo", "test"):
        for extra in re.findall(r"\.\[(\w+)\]", _readme_command(name)):
            assert extra in metadata.get_all("Provides-Extra")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    # Not isolated: the build back end is a dependency of the tests, so that they need no network.
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", directory],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (path,) = directory.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_every_file_of_both_roots_and_nothing_else(wheel):
    sources = {
        path.relative_to(root).as_posix()
        for root, folders in ((ROOT, ["abuseguard"]), (ROOT / "adapters", _adapters()))
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == sources
    assert "abuseguard/py.typed" in sources
    assert {f"{adapter}/py.typed" for adapter in _adapters()} <= sources


def test_the_wheel_has_the_licence_the_command_and_the_readme(wheel):
    files = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert b"Apache License" in wheel.read(files["licenses/LICENSE"])
    assert b"abuseguard = abuseguard.cli:main" in wheel.read(files["entry_points.txt"])
    assert b"# abuseguard" in wheel.read(files["METADATA"])


def _adapters() -> list[str]:
    return sorted(path.name for path in (ROOT / "adapters").iterdir() if path.name.startswith("abuseguard_"))


@pytest.mark.parametrize("adapter", ["abuseguard_django", "abuseguard_fastapi", "abuseguard_flask"])
def test_there_is_an_adapter_for(adapter):
    assert adapter in _adapters()


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, abuseguard; print(*{name.partition('.')[0] for name in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "abuseguard" in loaded
    assert not loaded & (OPTIONAL | {"limits", "pydantic", "starlette"})


def test_the_core_guards_an_application_where_no_optional_package_is_installed():
    # Blocked, not uninstalled, so that this is tested everywhere.
    program = """if True:
        import importlib.abc
        import sys

        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.partition(".")[0] in OPTIONAL:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing())
        import abuseguard.asgi
        import abuseguard.testing
        from abuseguard import Limit, Settings
        from abuseguard.wsgi import AbuseGuardMiddleware
        from wsgiref.util import setup_testing_defaults

        def app(environ, start_response):
            start_response("204 No Content", [])
            return []

        guarded = AbuseGuardMiddleware(app, settings=Settings(limits=[Limit("1/hour")], store="memory://"))
        for _ in range(2):
            environ = {"REMOTE_ADDR": "192.0.2.1"}
            setup_testing_defaults(environ)
            answer = guarded(environ, lambda status, headers, exc_info=None: print(status[:3]))
            list(answer)
            getattr(answer, "close", lambda: None)()
    """.replace("OPTIONAL", repr(OPTIONAL))
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (shown.stdout.split(), shown.stderr) == (["204", "429"], "")


def test_every_name_the_package_exports_can_be_had():
    import abuseguard

    assert abuseguard.__all__
    for name in abuseguard.__all__:
        assert hasattr(abuseguard, name)
