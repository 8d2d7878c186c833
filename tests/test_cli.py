from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest

from abuseguard.cli import main
from abuseguard.demo.trace import demo_requests

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "abuseguard.cli"]


def run(*arguments, code=None, stdin=b"", **environment):
    command = COMMAND if code is None else [sys.executable, "-c", code]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", **environment},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "requests.jsonl.gz"
    with gzip.open(path, "wt") as log:
        for request in demo_requests()[:300]:
            line = {
                "ts": request.ts,
                "account": f"tenant-{request.account}",
                "ip": request.ip,
                "messages": [{"role": message.role, "content": message.content} for message in request.messages],
                "stream": request.stream,
                "output_tokens": request.output_tokens,
            }
            log.write(json.dumps(line) + "\n")
    return path


def one_line(text):
    assert text.startswith("abuseguard: ")
    assert text.count("\n") == 1
    return text.removeprefix("abuseguard: ").rstrip("\n")


def test_the_version_is_that_of_the_package():
    assert run("--version") == (0, f"abuseguard {metadata.version('abuseguard')}\n", "")


def test_alone_it_says_what_it_can_do():
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "demo" in out


def test_help_names_every_option():
    code, out, _ = run("demo", "--help")
    assert code == 0
    for option in (
        "--trace",
        "--limit",
        "--port",
        "--concurrency",
        "--real-time",
        "--speed",
        "--max-requests",
        "--json",
    ):
        assert option in out


def test_the_console_script_is_the_same_command():
    (script,) = metadata.entry_points(group="console_scripts", name="abuseguard")
    assert script.load() is main


def test_the_demo_runs_by_itself_and_ends(tmp_path):
    code, out, err = run("demo", "--json", tmp_path / "summary.json")
    assert (code, err) == (0, "")
    assert "\x1b" not in out  # no live display and no colours where nobody watches
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert figures["requests"] == len(demo_requests())
    assert figures["requests"] == figures["allowed"] + figures["denied"]
    assert {name for name, count in figures["kinds"].items() if count["denied"]} == {"harvesting"}
    assert f"{figures['requests']:,} requests of 49 accounts" in out
    assert "all of them harvesting; never one of people, products and nightly batch" in " ".join(out.split())


def test_a_log_is_driven_with_the_limits_given(trace, tmp_path):
    options = ["--limit", "1/day", "--limit", "1000000/hour unit=tokens", "--concurrency", "4", "--max-requests", "200"]
    code, out, err = run("demo", "--trace", trace, *options, "--json", tmp_path / "summary.json")
    assert (code, err) == (0, "")
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert figures["limits"] == ["1/day", "1000000/hour unit=tokens"]
    assert figures["requests"] == 200
    assert figures["allowed"] == figures["accounts"]
    assert all(count["allowed"] == 1 for count in figures["by_account"].values())
    assert "tenant-harvest-1" in out


def test_a_log_is_read_from_standard_input_and_what_is_no_request_is_told(trace):
    lines = gzip.decompress(trace.read_bytes()).splitlines(keepends=True)[:20]
    code, out, err = run("demo", "--trace", "-", stdin=b"".join([*lines, b"oops\n", *lines]))
    assert (code, err) == (0, "")
    assert "40 requests" in out
    assert "passed over as no requests: 1. The first: -: line 21: not JSON" in out


def test_in_real_time_the_guard_runs_on_the_systems_clock(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(json.dumps({"ts": 1e9 + 30 * n, "account": "a"}) + "\n" for n in range(4)))
    options = ["--trace", path, "--limit", "1/minute", "--json", tmp_path / "summary.json"]
    assert run("demo", *options, "--real-time", "--speed", "1000")[0] == 0
    assert json.loads((tmp_path / "summary.json").read_text())["denied"] == 3
    assert run("demo", *options)[0] == 0
    assert json.loads((tmp_path / "summary.json").read_text())["denied"] == 2


def test_an_encoding_that_cannot_say_a_name_is_no_problem(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"ts": 1, "account": "\\u00e4\\u4f60\\ud800"}\n')
    code, out, err = run("demo", "--trace", path, PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert "1 request of 1 account" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--trace", "missing.jsonl"], "missing.jsonl: No such file or directory"),
        (["demo", "--trace", ROOT / "pyproject.toml"], "pyproject.toml: not a request log: line 1: not JSON"),
        (["demo", "--trace", ROOT], "Is a directory"),
        (["demo", "--trace", os.devnull], "no requests in it"),
        (["demo", "--limit", "often"], "--limit: limits[0].rate: got 'often', expected a rate such as"),
        (["demo", "--limit", "1/day burst=0"], "burst: got 0"),
        (["demo", "--limit", "1/day", "--limit", "1/day"], "--limit: limits[1].name"),
        (["demo", "--json", "no/such/folder/x"], "no/such/folder/x: No such file or directory"),
        (["demo", "--port", "70000"], "70000 is not in the range"),
        (["demo", "--port", "http"], "'http' is not a valid integer range"),
        (["demo", "--concurrency", "0"], "0 is not in the range"),
        (["demo", "--max-requests", "0"], "0 is not in the range"),
        (["demo", "--speed", "60"], "--speed goes with --real-time"),
        (["demo", "--real-time", "--speed", "0"], "not in the range"),
        (["demo", "--real-time", "--speed", "nan"], "--speed: got nan"),
        (["demo", "--nonsense"], "No such option"),
        (["demo", "extra"], "unexpected extra argument"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, capsys):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_bad_input_ends_the_process_with_two():
    code, out, err = run("demo", "--trace", "missing.jsonl")
    assert (code, out, one_line(err)) == (2, "", "missing.jsonl: No such file or directory")


def test_a_taken_port_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("demo", "--port", port)
    assert (code, out, one_line(err)) == (2, "", f"port {port}: Address already in use")


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("click", "[]", "cli"),
        ("click", "['demo']", "demo"),
        ("rich", "['demo']", "demo"),
        ("uvicorn", "['demo']", "demo"),
        ("fastapi", "['demo']", "demo"),
        ("h11", "['demo']", "demo"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(package, arguments, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from abuseguard.cli import main; sys.exit(main({arguments}))"
    exit_code, out, err = run(code=code)
    assert (exit_code, out) == (2, "")
    assert one_line(err) == f"{package} is not installed: pip install 'abuseguard[{extra}]'"


def test_importing_the_command_imports_nothing_optional():
    code = (
        "import sys, abuseguard.cli; print(sorted({'click', 'rich', 'fastapi', 'uvicorn', 'h11'} & set(sys.modules)))"
    )
    assert run(code=code) == (0, "[]\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_ends_it_cleanly(tmp_path):
    def line(n):
        return json.dumps({"ts": n, "account": "a"}).encode() + b"\n"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo = subprocess.Popen(
        [
            *COMMAND,
            "demo",
            "--trace",
            "-",
            "--real-time",
            "--port",
            str(port),
            "--json",
            str(tmp_path / "summary.json"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Whatever a shell runs in the background ignores interrupts, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert demo.stdin
    try:
        demo.stdin.write(line(0) + line(1000))
        demo.stdin.close()
        while demo.poll() is None:
            with contextlib.suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                connection.request("GET", "/healthz")
                connection.getresponse().read()
                break
            time.sleep(0.05)
        time.sleep(1)  # for the driver to begin; the second request would be sent after a quarter of an hour
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does, to the whole group
        demo.wait(30)
    finally:
        demo.kill()
    assert demo.stdout
    assert demo.stderr
    out, err = demo.stdout.read().decode(), demo.stderr.read().decode()
    demo.stdout.close()
    demo.stderr.close()
    assert (demo.returncode, err) == (130, "")
    assert re.search(r"Interrupted after [01] requests? of [01] accounts?", out)
    assert json.loads((tmp_path / "summary.json").read_text())["interrupted"] is True


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_server_that_dies_is_one_clear_line_and_a_failure():
    code = """
import os, signal, sys
from abuseguard.cli import main
from abuseguard.demo import source
from abuseguard.demo.server_process import ServerProcess
enter = ServerProcess.__enter__
def enter_and_die(self):
    enter(self)
    os.kill(self.pid, signal.SIGKILL)
    return self
ServerProcess.__enter__ = enter_and_die
if __name__ == "__main__":
    sys.exit(main(["demo"]))
"""
    exit_code, _, err = run(code=code)
    assert exit_code == 1
    assert one_line(err) == "the demo's server broke down (exit code -9)"
