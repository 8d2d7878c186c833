from __future__ import annotations

import json

from abuseguard.demo.summary import TOP_ACCOUNTS, Summary
from abuseguard.demo.tally import Tally
from abuseguard.replay import LogError


def summary(*requests, **more):
    """A summary of requests given as (account, status, ts)."""
    tally = Tally()
    for account, status, ts in requests:
        tally.add(account, ts=ts, status=status, degraded=status == 503, streamed=False, tokens=1, seconds=0.01)
    return Summary(**{"tally": tally, "limits": ("60/minute",), "seconds": 2.0, **more})


def test_the_sentences_say_what_happened():
    assert summary(("a", 200, 0.0), ("a", 429, 1.0), ("b", 200, 7200.0)).sentences == [
        "3 requests of 2 accounts, 2.0 hours of the log, in 2.0 s: 2 a second over real HTTP.",
        "The limits for each account (60/minute) denied 1 request of 1 account; the other 1 were never denied.",
    ]


def test_where_kinds_are_known_they_are_named():
    requests = [("person-1", 200, 0.0), ("product-1", 200, 0.0), ("thief-1", 429, 0.0), ("thief-2", 429, 0.0)]
    told = summary(*requests, kind=lambda account: account.partition("-")[0], kinds=["person", "product", "thief"])
    assert told.sentences[1] == (
        "The limits for each account (60/minute) denied 2 requests of 2 accounts, all of them thief; "
        "never one of person and product."
    )
    assert list(told.groups) == ["person", "product", "thief"]


def test_nothing_denied_and_no_limits():
    assert summary(("a", 200, 0.0)).sentences[1] == "The limits for each account (60/minute) denied nothing."
    assert summary(("a", 200, 0.0), limits=()).sentences[1] == "No limits denied nothing."


def test_what_went_wrong_is_said():
    told = summary(
        ("a", 500, 0.0),
        ("b", 503, 1.0),
        skipped_lines=2,
        first_skipped=LogError("log", 7, "not JSON"),
        interrupted=True,
    ).sentences
    assert told[0].startswith("Interrupted after 2 requests of 2 accounts, 1 seconds of the log")
    assert "1 request were decided without the store, which did not answer." in told
    assert "1 request failed with a server error (5xx)." in told
    assert "Lines of the log passed over as no requests: 2. The first: log: line 7: not JSON" in told


def test_an_interrupted_run_without_a_request_has_a_summary():
    assert summary(seconds=0.0, interrupted=True).sentences == [
        "Interrupted after 0 requests of 0 accounts, 0 seconds of the log, in 0.0 s: 0 a second over real HTTP."
    ]


def test_accounts_that_were_denied_most_come_first_and_the_rest_are_added_up():
    requests = [(f"account-{n:02d}", 200, 0.0) for n in range(20) for _ in range(n + 1)] + [("account-03", 429, 0.0)]
    groups = summary(*requests).groups
    assert list(groups)[:2] == ["account-03", "account-19"]
    assert len(groups) == TOP_ACCOUNTS + 1
    assert groups["(8 more accounts)"].accounts == 8
    assert sum(count.requests for count in groups.values()) == 211


def test_the_figures_are_json():
    figures = summary(("a", 200, 5.0), ("b", 429, 6.0), kind=lambda account: account).as_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["requests"] == 2
    assert figures["denied"] == 1
    assert figures["requests_per_second"] == 1.0
    assert figures["kinds"]["b"]["denied"] == figures["by_account"]["b"]["denied"] == 1
