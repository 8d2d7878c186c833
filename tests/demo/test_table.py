from __future__ import annotations

import io

from rich.console import Console

from abuseguard.demo.summary import Summary
from abuseguard.demo.table import Progress, printable, show_summary
from abuseguard.demo.tally import Tally


def tally_of(*accounts, status=200):
    tally = Tally()
    for account in accounts:
        tally.add(account, ts=0.0, status=status, degraded=False, streamed=True, tokens=1234, seconds=0.05)
    return tally


def printed(renderable=None, *, summary=None, width=80, terminal=False):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    if summary is not None:
        show_summary(console, summary)
    else:
        console.print(renderable)
    return console.file.getvalue()


def test_the_table_fits_eighty_columns_and_has_a_row_each_and_the_sum():
    tally = tally_of(*[f"account-of-a-long-name-{n}" for n in range(3)] * 100, status=429)
    text = printed(summary=Summary(tally=tally, limits=("60/minute",), seconds=1.0))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines if "100" in line or "300" in line}
    assert rows["all"] == ["300", "0", "300", "370,200", "50.1", "50.1"] or rows["all"][:4] == [
        "300",
        "0",
        "300",
        "370,200",
    ]
    assert sum(name.startswith("account-of") for name in rows) == 3


def test_kinds_have_a_column_of_accounts():
    tally = tally_of("cat-1", "cat-2", "dog-1")
    text = printed(summary=Summary(tally=tally, limits=(), seconds=1.0, kind=lambda account: account[:3]))
    assert "traffic" in text
    assert next(line.split()[:3] for line in text.splitlines() if line.strip().startswith("cat")) == ["cat", "2", "2"]


def test_names_out_of_a_log_do_nothing_to_the_terminal():
    evil = "\x1b[2J[red]a\nb\u202e"
    text = printed(summary=Summary(tally=tally_of(evil), limits=(), seconds=1.0), terminal=True)
    assert "\x1b[2J" not in text
    assert "?[2J[red]a?b?" in text
    assert len(printable("x" * 10_000)) < 100


def test_progress_shows_the_counts_and_the_time_left():
    progress = Progress(tally_of("a", "b"), lambda: 0.5)
    text = printed(progress.render())
    lines = text.splitlines()
    assert len(lines) == 4  # the bar on a line of its own
    for figure in ("requests 2", "allowed 2", "denied 0", "degraded 0", "streamed 2", "tokens used 2,468", "0:00"):
        assert figure in text


def test_progress_does_not_guess_what_it_cannot_know():
    for share in (None, 0.0):
        assert "time left ?" in printed(Progress(Tally(), lambda share=share: share).render())


def test_progress_leaves_nothing_behind_on_the_terminal():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with Progress(tally_of("a"), lambda: 0.5).live(console):
        pass
    assert console.file.getvalue().rstrip().endswith("\x1b[2K")
