from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard.tokens import Ending, Estimate, Observed, settled_tokens

ESTIMATE = Estimate(input_tokens=100, output_tokens=1000)
REPORTED = Observed(
    started=True, status=200, reported=True, input_tokens=70, output_tokens=30, counted_output_tokens=500
)
COUNTED = Observed(started=True, status=200, counted_output_tokens=40)
FAILED = Observed(started=True, status=500, counted_output_tokens=40)
SILENT = Observed()


def settle(observed: Observed, ending: Ending, estimate: Estimate | None = ESTIMATE, reserved: int = 1100) -> int:
    return settled_tokens(reserved=reserved, estimate=estimate, observed=observed, ending=ending)


@pytest.mark.parametrize("estimate", [ESTIMATE, None])
@pytest.mark.parametrize("ending", Ending)
def test_reported_usage_is_charged_exactly(ending, estimate) -> None:
    assert settle(REPORTED, ending, estimate) == 100


def test_reported_output_without_input_takes_the_input_as_estimated() -> None:
    observed = Observed(started=True, status=200, reported=True, output_tokens=30, counted_output_tokens=500)
    assert settle(observed, Ending.COMPLETE) == 130
    assert settle(observed, Ending.COMPLETE, estimate=None) == 30


@pytest.mark.parametrize(("ending", "tokens"), [(Ending.DISCONNECTED, 1100), (Ending.RAISED, 0), (Ending.COMPLETE, 0)])
def test_a_response_that_never_started(ending, tokens) -> None:
    assert settle(SILENT, ending) == tokens


@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize("status", [307, 400, 429, 500])
def test_what_is_not_a_success_costs_nothing(ending, status) -> None:
    assert settle(Observed(started=True, status=status, counted_output_tokens=40), ending) == 0


def test_usage_reported_with_an_error_is_charged() -> None:
    observed = Observed(started=True, status=500, reported=True, input_tokens=70, output_tokens=30)
    assert settle(observed, Ending.COMPLETE) == 100


@pytest.mark.parametrize("ending", Ending)
def test_without_a_report_output_counts_as_far_as_it_got(ending) -> None:
    assert settle(COUNTED, ending) == 140


def test_the_input_told_at_the_start_of_a_stream_is_better_than_the_estimate() -> None:
    observed = Observed(started=True, status=200, input_tokens=12, counted_output_tokens=40)
    assert settle(observed, Ending.DISCONNECTED) == 52


def test_what_was_sent_counts_even_beyond_the_reservation() -> None:
    observed = Observed(started=True, status=200, counted_output_tokens=5000)
    assert settle(observed, Ending.DISCONNECTED) == 5100


@pytest.mark.parametrize("ending", Ending)
def test_not_a_request_to_a_model(ending) -> None:
    assert settle(COUNTED, ending, estimate=None, reserved=0) == 0
    assert settle(SILENT, ending, estimate=None, reserved=0) == 0


@given(
    st.integers(0, 10**9),
    st.none() | st.builds(Estimate, input_tokens=st.integers(0, 10**9), output_tokens=st.integers(0, 10**9)),
    st.builds(
        Observed,
        input_tokens=st.none() | st.integers(0, 10**9),
        output_tokens=st.none() | st.integers(0, 10**9),
        reported=st.booleans(),
        counted_output_tokens=st.integers(0, 10**9),
        started=st.booleans(),
        status=st.integers(100, 599),
    ),
    st.sampled_from(Ending),
)
def test_always_a_sound_number(reserved, estimate, observed, ending) -> None:
    tokens = settled_tokens(reserved=reserved, estimate=estimate, observed=observed, ending=ending)
    assert 0 <= tokens <= 10**9


@pytest.mark.parametrize("ending", Ending)
def test_an_estimate_that_stands_is_charged_where_nothing_is_reported(ending):
    estimate = Estimate(input_tokens=0, output_tokens=500, stands=True)
    served = Observed(started=True, status=200, counted_output_tokens=37)
    assert settled_tokens(reserved=500, estimate=estimate, observed=served, ending=ending) == 500
    failed = Observed(started=True, status=500, counted_output_tokens=37)
    assert settled_tokens(reserved=500, estimate=estimate, observed=failed, ending=ending) == 0
    reported = Observed(started=True, status=200, reported=True, input_tokens=3, output_tokens=4)
    assert settled_tokens(reserved=500, estimate=estimate, observed=reported, ending=ending) == 7
