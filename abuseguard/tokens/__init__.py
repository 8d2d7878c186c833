"""LLM tokens: estimated from a request, observed in its response, settled in the end."""

from __future__ import annotations

from abuseguard.tokens.estimate import MEDIA_TOKENS, Estimate, estimate_from_length, estimate_tokens
from abuseguard.tokens.settlement import Ending, settled_tokens
from abuseguard.tokens.usage import Observed, UsageMeter

__all__ = [
    "MEDIA_TOKENS",
    "Ending",
    "Estimate",
    "Observed",
    "UsageMeter",
    "estimate_from_length",
    "estimate_tokens",
    "settled_tokens",
]
