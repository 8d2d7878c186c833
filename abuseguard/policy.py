"""Settings at work: which limits a request meets and what it asks of them, and what the store's answer means.

Pure: no I/O and no clock. A guard puts a store between ``plan`` and ``interpret``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from abuseguard._callback import Callback
from abuseguard.buckets.store import Adjustment, Demand, Reply
from abuseguard.decision import Decision, Outcome
from abuseguard.errors import SettingsError
from abuseguard.facts import RequestFacts
from abuseguard.identity import Address, account_key
from abuseguard.limit import Limit
from abuseguard.rule import Rule, path_matcher
from abuseguard.settings import Settings, limit_from
from abuseguard.tokens import Estimate, estimate_from_length, estimate_tokens

_COMPILED_LIMITS = 1024
_NANOSECONDS_PER_SECOND = 1_000_000_000


class RuleSet:
    """Rules that apply together, with what is the same for all requests that meet them."""

    __slots__ = ("fixed", "max_delay_ns", "rules", "token_rules")

    def __init__(self, rules: tuple[Rule, ...], max_delay_ns: int) -> None:
        self.rules = rules
        self.max_delay_ns = max_delay_ns
        self.token_rules = tuple(rule for rule in rules if rule.limit.unit == "tokens")
        #: The demands, if they are the same for every request.
        self.fixed = (
            tuple(rule.fixed_demand(max_delay_ns) for rule in rules) if all(rule.constant for rule in rules) else None
        )


@dataclass(slots=True)
class Plan:
    """What one request asks of the store.

    Args:
        account: who asks.
        rules, demands: the limits it meets, and what it asks of each.
        exempt: it is not limited at all.
        refused: it is not to be let in, whatever the store says.
        tokens: the LLM tokens reserved of each limit in tokens.
        estimate: what the reservation was made from; None for a request that calls no model.
        max_delay_ns: how long it may be held back instead of denied.
    """

    account: str
    rules: Sequence[Rule] = ()
    demands: Sequence[Demand] = ()
    exempt: bool = False
    refused: bool = False
    tokens: int = 0
    estimate: Estimate | None = None
    max_delay_ns: int = 0

    @property
    def meters_tokens(self) -> bool:
        """Whether the tokens used have to be found out."""
        return any(rule.limit.unit == "tokens" for rule in self.rules)


class Policy:
    """Settings, compiled: answers what a request asks for without touching anything outside.

    Args:
        settings: what the operator decided.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._enforces = settings.mode == "enforce"
        self._max_delay_ns = round(settings.max_delay_seconds * _NANOSECONDS_PER_SECOND)
        self._addresses = settings.addresses
        self._address_header = settings.addresses.header if settings.addresses.needs_headers else ""
        source = settings.account
        self._account = None if isinstance(source, Address) else Callback("account", source, None)  # type: ignore[arg-type]
        self._plan_name = settings.plan and Callback("plan", settings.plan, None)  # type: ignore[arg-type]
        self._exempt_path = path_matcher(settings.exempt_paths)
        self._exempt = settings.exempt and Callback("exempt", settings.exempt, False)
        self._has_exemptions = bool(
            self._exempt_path or self._exempt or settings.exempt_accounts or len(settings.exempt_hosts)
        )
        self._estimate = settings.estimate and Callback("estimate", settings.estimate, None)
        self._rule_of = lru_cache(_COMPILED_LIMITS)(Rule)
        self._rule_set_of = lru_cache(_COMPILED_LIMITS)(RuleSet)
        static = [limit for limit in settings.limits if isinstance(limit, Limit)]
        self._dynamic = [
            Callback(f"limits[{position}]", limit, None)
            for position, limit in enumerate(settings.limits)
            if not isinstance(limit, Limit) and callable(limit)
        ]
        rules = [self._rule_of(limit) for limit in static]
        self._request_rules = tuple(rule for rule in rules if rule.limit.unit != "messages")
        self._message_rules = tuple(rule for rule in rules if rule.limit.unit == "messages")
        selective = self._dynamic or any(rule.selective for rule in self._request_rules)
        #: The rules of every request, if all requests meet the same.
        self._everywhere = None if selective else self._request_rules

    @property
    def limits_tokens(self) -> bool:
        """Whether any limit is in tokens, so that shells have to read bodies."""
        return bool(self._dynamic) or any(rule.limit.unit == "tokens" for rule in self._request_rules)

    @property
    def limits_messages(self) -> bool:
        """Whether any limit counts WebSocket messages."""
        return bool(self._message_rules)

    @property
    def bucket_names(self) -> list[str]:
        """The names of the buckets that every account may have; those of dynamic limits are not known beforehand."""
        return [rule.name for rule in (*self._request_rules, *self._message_rules)]

    def identify(self, facts: RequestFacts) -> None:
        """Fills in who is asking: address, account and plan."""
        if facts.account:
            return
        header = self._address_header
        address = self._addresses.key(facts.peer, facts.headers.all(header) if header else ())
        if address is None and facts.peer and not facts.peer.startswith("unix"):
            address = facts.peer  # a server's own name for a peer, such as a test client's: not the client's to choose
        facts.address = address
        account = None if self._account is None else account_key(self._account(facts))
        if account is None:
            account = "ip:" + address if address else "ip:none"
        facts.account = account
        if self._plan_name is not None:
            plan = self._plan_name(facts)
            facts.plan = plan if isinstance(plan, str) else None

    def plan(self, facts: RequestFacts, *, may_delay: bool = False) -> Plan:
        """What this request asks of the store.

        Args:
            facts: what is known of it; filled in with who is asking.
            may_delay: whether the caller can hold it back.
        """
        self.identify(facts)
        account = facts.account
        if account == "ip:none" and self.settings.missing_address != "shared":
            refused = self.settings.missing_address == "deny"
            return Plan(account, exempt=not refused, refused=refused)
        if self._has_exemptions and self._is_exempt(facts):
            return Plan(account, exempt=True)
        rules = self._everywhere
        if rules is None:
            rules = self._matching(self._request_rules, facts)
        return self._ask(facts, rules, self._max_delay_ns if may_delay else 0)

    def plan_message(self, facts: RequestFacts) -> Plan:
        """What one WebSocket message asks of the store, on a connection whose handshake was planned with ``facts``."""
        if self._has_exemptions and self._is_exempt(facts):
            return Plan(facts.account, exempt=True)
        return self._ask(facts, tuple(rule for rule in self._message_rules if rule.applies(facts)), 0)

    def plan_limits(self, facts: RequestFacts, limits: Sequence[Limit]) -> Plan:
        """What a request asks of limits of its own route, besides those of the settings."""
        self.identify(facts)
        if self._has_exemptions and self._is_exempt(facts):
            return Plan(facts.account, exempt=True)
        rules = tuple(rule for rule in map(self._rule_of, limits) if rule.applies(facts))
        return self._ask(facts, rules, 0)

    def _is_exempt(self, facts: RequestFacts) -> bool:
        settings = self.settings
        if self._exempt_path is not None and self._exempt_path(facts.path):
            return True
        if facts.account in settings.exempt_accounts:
            return True
        if len(settings.exempt_hosts):
            header = self._address_header
            client = self._addresses.ip(facts.peer, facts.headers.all(header) if header else ())
            if settings.exempt_hosts.contains(client):
                return True
        return self._exempt is not None and bool(self._exempt(facts))

    def _matching(self, rules: tuple[Rule, ...], facts: RequestFacts) -> tuple[Rule, ...]:
        found = [rule for rule in rules if rule.applies(facts)]
        for function in self._dynamic:
            given = function(facts)
            if given is None:
                continue
            for item in given if isinstance(given, Sequence) and not isinstance(given, str) else (given,):
                try:
                    limit = limit_from(item)
                except SettingsError as error:
                    function.report(f"returned a limit that is wrong ({error})")
                    continue
                rule = self._rule_of(limit)
                if rule.applies(facts) and all(rule.name != other.name for other in found):
                    found.append(rule)
        return tuple(found)

    def _ask(self, facts: RequestFacts, rules: tuple[Rule, ...], max_delay_ns: int) -> Plan:
        rule_set = self._rule_set_of(rules, max_delay_ns)
        if rule_set.fixed is not None:
            return Plan(facts.account, rules, rule_set.fixed, max_delay_ns=max_delay_ns)
        estimate = self._estimate_tokens(facts) if rule_set.token_rules else None
        tokens = estimate.total_tokens if estimate else 0
        asked = []
        demands = []
        for rule in rules:
            demand = rule.demand(facts, tokens, max_delay_ns)
            if demand is not None:
                asked.append(rule)
                demands.append(demand)
        return Plan(facts.account, asked, demands, tokens=tokens, estimate=estimate, max_delay_ns=max_delay_ns)

    def _estimate_tokens(self, facts: RequestFacts) -> Estimate | None:
        if self._estimate is not None:
            tokens = self._estimate(facts)
            if tokens is None:
                return None
            if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= 10**12:
                self._estimate.report(f"returned {tokens!r}, expected a whole number of at least 0, or None")
                return None
            return Estimate(input_tokens=0, output_tokens=tokens)
        default = self.settings.default_output_tokens
        if facts.body is not None:
            return estimate_tokens(facts.body, default_output_tokens=default)
        if facts.content_length is not None:
            return estimate_from_length(facts.content_length, default_output_tokens=default)
        return None

    def interpret(self, plan: Plan, reply: Reply) -> Decision:
        """What the store's answer to a plan means for the request."""
        if reply.degraded:
            return Decision(Outcome.DEGRADED, reply.allowed or not self._enforces, plan, reply.times_to_full_ns)
        if not reply.allowed:
            return Decision(Outcome.DENIED, not self._enforces, plan, reply.times_to_full_ns)
        if plan.max_delay_ns:
            delay_ns = max(
                (
                    (time_to_full_ns or 0) - rule.bucket.capacity_ns
                    for rule, time_to_full_ns in zip(plan.rules, reply.times_to_full_ns, strict=True)
                ),
                default=0,
            )
            if delay_ns > 0:
                return Decision(
                    Outcome.DELAYED, True, plan, reply.times_to_full_ns, delay_ns if self._enforces else 0
                )
        return Decision(Outcome.ALLOWED, True, plan, reply.times_to_full_ns)

    def without_store(self, plan: Plan) -> Decision | None:
        """The decision that needs no store: exempt, refused, or nothing asked; None if the store is needed."""
        if plan.exempt:
            return Decision(Outcome.EXEMPT, True, plan)
        if plan.refused:
            return Decision(Outcome.DENIED, not self._enforces, plan)
        if not plan.demands:
            return Decision(Outcome.ALLOWED, True, plan)
        return None

    def settlement(self, decision: Decision, used_tokens: int) -> list[Adjustment]:
        """How the limits in tokens have to be corrected, now that it is known how many were used."""
        plan = decision.plan
        # While the store was away nothing could be reserved in it.
        delta = used_tokens - (0 if decision.outcome is Outcome.DEGRADED else plan.tokens)
        if not delta or decision.outcome is Outcome.DENIED:
            return []
        return [
            Adjustment(rule.name, rule.bucket.cost_ns(delta), rule.bucket.capacity_ns, demand.key)
            for rule, demand in zip(plan.rules, plan.demands, strict=True)
            if rule.limit.unit == "tokens"
        ]

