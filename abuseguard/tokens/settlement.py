"""What a request is charged in the end, after tokens were reserved for it and its response was observed."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from abuseguard.tokens._json import MAX_TOKENS

if TYPE_CHECKING:
    from abuseguard.tokens.estimate import Estimate
    from abuseguard.tokens.usage import Observed


class Ending(enum.Enum):
    """How a response ended."""

    COMPLETE = "complete"
    DISCONNECTED = "disconnected"  # the client went away
    RAISED = "raised"  # the application failed


def settled_tokens(*, reserved: int, estimate: Estimate | None, observed: Observed, ending: Ending) -> int:
    """The tokens that a request took, in place of those that were reserved for it.

    The first line that applies:

    - The response reports its usage: exactly that, however it ended.
    - It never started, because the client went away: what was reserved. The model may be at work, and a refund would
      let a client have it work for nothing (BerriAI/litellm, pull request 35098).
    - It never started otherwise, or is not a success (status 300 and above): 0. Our own failure costs nothing.
    - The request was not one to a language model: 0.
    - The estimate stands for what is not reported: what was reserved.
    - Otherwise the input, as told at the start of a stream or else as estimated, and the output as counted, as far as
      it got. That may be more than was reserved: a limit that the request names and the application does not heed
      would otherwise be a way to pay less.

    Args:
        reserved: the tokens reserved before.
        estimate: what the reservation came from; None if the request was not one to a language model.
        observed: what was seen of the response.
        ending: how it ended.

    >>> from abuseguard.tokens.estimate import Estimate
    >>> from abuseguard.tokens.usage import Observed
    >>> estimate = Estimate(input_tokens=100, output_tokens=1000)
    >>> cut_off = Observed(started=True, status=200, counted_output_tokens=37)
    >>> settled_tokens(reserved=1100, estimate=estimate, observed=cut_off, ending=Ending.DISCONNECTED)
    137
    """
    if observed.reported:
        told = observed.input_tokens
        read = told if told is not None else estimate.input_tokens if estimate is not None else 0
        return _bounded(read + (observed.output_tokens or 0))
    if not observed.started:
        return reserved if ending is Ending.DISCONNECTED else 0
    if estimate is None or (observed.status is not None and observed.status >= 300):
        return 0
    if estimate.stands:
        return reserved
    read = estimate.input_tokens if observed.input_tokens is None else observed.input_tokens
    return _bounded(read + observed.counted_output_tokens)


def _bounded(tokens: int) -> int:
    return max(0, min(MAX_TOKENS, tokens))
