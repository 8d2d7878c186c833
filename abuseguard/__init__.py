"""abuseguard: limits every account of an API server, in one line, and sees the ones that act together.

The public names. Importing this loads neither Redis nor Numba, nor any framework.
"""

from __future__ import annotations

from abuseguard.decision import Decision, Outcome, Quota
from abuseguard.errors import AbuseGuardError, MissingExtraError, SettingsError, StoreError
from abuseguard.facts import RequestFacts
from abuseguard.identity import Address, ApiKey, Header, User
from abuseguard.limit import Limit
from abuseguard.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "AbuseGuardError",
    "Address",
    "ApiKey",
    "Decision",
    "Header",
    "Limit",
    "MissingExtraError",
    "Outcome",
    "Quota",
    "RequestFacts",
    "Settings",
    "SettingsError",
    "StoreError",
    "User",
]
