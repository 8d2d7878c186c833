from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from abuseguard.demo.trace import KINDS, demo_kind, demo_requests
from abuseguard.replay import LoggedRequest


@pytest.fixture(scope="module")
def requests() -> list[LoggedRequest]:
    return demo_requests()


def test_it_is_the_same_every_time_and_another_for_another_seed(requests):
    assert demo_requests() == requests
    assert demo_requests(seed=2) != requests


def test_it_is_in_time_order_over_some_hours(requests):
    times = [request.ts for request in requests]
    assert times == sorted(times)
    assert 3 * 3600 < times[-1] - times[0] < 8 * 3600


def test_every_kind_of_traffic_is_in_it(requests):
    kinds = Counter(demo_kind(request.account) for request in requests)
    assert set(kinds) == set(KINDS.values())
    assert 1800 < kinds.total() < 2400
    assert min(kinds.values()) >= 200


def test_people_stay_within_the_pace_of_people_and_the_campaign_does_not(requests):
    times = defaultdict(list)
    for request in requests:
        times[request.account].append(request.ts)
    for account, at in times.items():
        most_in_a_minute = max(sum(1 for other in at if 0 <= other - ts < 60) for ts in at)
        if demo_kind(account) == "people":
            assert most_in_a_minute <= 6
        if demo_kind(account) == "harvesting":
            assert most_in_a_minute > 60


def test_requests_are_fit_to_be_sent(requests):
    for request in requests:
        assert request.messages[-1].role == "user"
        assert request.messages[-1].content
        assert request.output_tokens >= 1
        assert request.input_tokens >= 1
    assert {request.stream for request in requests} == {True, False}
