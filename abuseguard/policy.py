"""Settings at work: which limits a request meets and what it asks of them, and what the store's answer means.

Pure: no I/O and no clock. A guard puts a store between ``plan`` and ``interpret``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from abuseguard._callback import Callback
from abuseguard.buckets.store import Adjustment, Demand, Reply
from abuseguard.decision import Decision, Outcome
from abuseguard.errors import SettingsError
from abuseguard.facts import RequestFacts
from abuseguard.identity import Address, account_key, account_source, short_key
from abuseguard.limit import Limit
from abuseguard.path_pattern import path_matcher
from abuseguard.rule import Rule
from abuseguard.settings import Settings, limit_from
from abuseguard.tokens import Estimate, estimate_from_length, estimate_tokens

_COMPILED_LIMITS = 1024
_PEERS_REMEMBERED = 8192
_LONGEST_PEER = 128
_NANOSECONDS_PER_SECOND = 1_000_000_000
_PLAIN_IPV4 = re.compile(r"(?:(?:0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])(?:\.(?!$)|$)){4}", re.ASCII).fullmatch
# The account of requests that have neither account nor address.
_NO_ONE = "ip:none"
# Looking a member up in its enumeration costs as much as making the decision.
_ALLOWED = Outcome.ALLOWED


class RuleSet:
    """Rules that apply together, with what is the same for all requests that meet them."""

    __slots__ = ("fixed_plan", "limits_tokens", "max_delay_ns", "rules")

    def __init__(self, rules: tuple[Rule, ...], max_delay_ns: int) -> None:
        self.rules = rules
        #: How much longer than its capacity allows a request may wait instead of being denied.
        self.max_delay_ns = max_delay_ns
        self.limits_tokens = any(rule.limit.unit == "tokens" for rule in rules)
        #: The plan, if it is the same for every request.
        self.fixed_plan = (
            Plan(self, tuple(rule.fixed_demand(max_delay_ns) for rule in rules))
            if all(rule.constant for rule in rules)
            else None
        )


@dataclass(slots=True)
class Plan:
    """What one request asks of the store; often the same for all, so it does not say who asks, and is never changed.

    Args:
        rule_set: the limits it meets.
        demands: what it asks of each of them.
        exempt: it is not limited at all.
        refused: it is not to be let in, whatever the store says.
        tokens: the LLM tokens reserved of each limit in tokens.
        estimate: what the reservation was made from; None for a request that calls no model.
    """

    rule_set: RuleSet
    demands: Sequence[Demand] = ()
    exempt: bool = False
    refused: bool = False
    tokens: int = 0
    estimate: Estimate | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The limits the request meets, in the order of its demands."""
        return self.rule_set.rules

    @property
    def meters_tokens(self) -> bool:
        """Whether the tokens used have to be found out."""
        return self.rule_set.limits_tokens


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
        self._client_of_peer = lru_cache(_PEERS_REMEMBERED)(self._client)
        source = account_source(settings.account)
        self._account = None if isinstance(source, Address) else Callback("account", source, None)
        self._plan_name = Callback("plan", settings.plan, None) if callable(settings.plan) else None
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
            if callable(limit)
        ]
        rules = [self._rule_of(limit) for limit in static]
        self._request_rules = tuple(rule for rule in rules if rule.limit.unit != "messages")
        self._message_rules = tuple(rule for rule in rules if rule.limit.unit == "messages")
        #: Whether different requests meet different limits.
        self._selects = bool(self._dynamic) or any(rule.selective for rule in self._request_rules)
        self._everywhere = RuleSet(self._request_rules, 0)
        self._everywhere_delayed = RuleSet(self._request_rules, self._max_delay_ns)
        self._nothing = RuleSet((), 0)
        #: The plan of a request that is not limited.
        self.exempted = Plan(self._nothing, exempt=True)

    @property
    def limits_tokens(self) -> bool:
        """Whether any limit is in tokens, so that shells have to read bodies."""
        return bool(self._dynamic) or any(rule.limit.unit == "tokens" for rule in self._request_rules)

    def may_limit_tokens(self, facts: RequestFacts) -> bool:
        """Whether a limit in tokens may be for this request, as far as method and path tell: else leave its body be."""
        if self._exempt_path is not None and self._exempt_path(facts.path):
            return False
        return bool(self._dynamic) or any(
            rule.limit.unit == "tokens" and rule.may_apply(facts) for rule in self._request_rules
        )

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
        peer = facts.peer
        if header:
            facts.address, account = self._client(peer, facts.headers.all(header))
        elif peer is None or len(peer) <= _LONGEST_PEER:
            facts.address, account = self._client_of_peer(peer)
        else:
            facts.address, account = self._client(peer)
        if self._account is not None:
            account = account_key(self._account(facts)) or account
        facts.account = account
        if self._plan_name is not None:
            plan = self._plan_name(facts)
            facts.plan = plan if isinstance(plan, str) else None

    def _client(self, peer: str | None, forwarded: Sequence[str] = ()) -> tuple[str | None, str]:
        """The client's address, and the account of requests that have no other."""
        # A plain IPv4 address is its own key. Reading it takes twenty times as long as seeing that it is one, which
        # counts where there are more clients than are remembered.
        if peer and not self._address_header and _PLAIN_IPV4(peer):
            return peer, "ip:" + peer
        address = self._addresses.key(peer, forwarded)
        if address is None and peer and not peer.startswith("unix"):
            # A server's own name for a peer, such as a test client's: not the client's to choose, but for servers that
            # believe any proxy. Then it may be of any length.
            address = short_key(peer)
        return address, "ip:" + address if address else _NO_ONE

    def plan(self, facts: RequestFacts, may_delay: bool = False, limits: Sequence[Limit] = ()) -> Plan:
        """What this request asks of the store.

        Args:
            facts: what is known of it; filled in with who is asking.
            may_delay: whether the caller can hold it back.
            limits: its route's own limits, taken in one step with those of the settings.
        """
        self.identify(facts)
        if facts.account == _NO_ONE and self.settings.missing_address != "shared":
            refused = self.settings.missing_address == "deny"
            return Plan(self._nothing, exempt=not refused, refused=refused)
        if self._has_exemptions and self._is_exempt(facts):
            return self.exempted
        if self._selects or limits:
            rules = self._matching(self._request_rules, facts, limits)
            rule_set = self._rule_set_of(rules, self._max_delay_ns if may_delay else 0)
        else:
            rule_set = self._everywhere_delayed if may_delay else self._everywhere
        return rule_set.fixed_plan or self._ask(facts, rule_set)

    def plan_message(self, facts: RequestFacts) -> Plan:
        """What one WebSocket message asks of the store, on a connection whose handshake was planned with ``facts``."""
        if self._lets_pass(facts):
            return self.exempted
        rule_set = self._rule_set_of(tuple(rule for rule in self._message_rules if rule.applies(facts)), 0)
        return rule_set.fixed_plan or self._ask(facts, rule_set)

    def plan_limits(self, facts: RequestFacts, limits: Sequence[Limit]) -> Plan:
        """What a request asks of limits of its own route, besides those of the settings."""
        self.identify(facts)
        if self._lets_pass(facts):
            return self.exempted
        rule_set = self._rule_set_of(tuple(rule for rule in map(self._rule_of, limits) if rule.applies(facts)), 0)
        return rule_set.fixed_plan or self._ask(facts, rule_set)

    def _lets_pass(self, facts: RequestFacts) -> bool:
        """Whether a request that was let in is not limited at all."""
        if facts.account == _NO_ONE and self.settings.missing_address != "shared":
            return True
        return self._has_exemptions and self._is_exempt(facts)

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

    def _matching(self, rules: tuple[Rule, ...], facts: RequestFacts, limits: Sequence[Limit] = ()) -> tuple[Rule, ...]:
        found = [rule for rule in rules if rule.applies(facts)]
        further = list(map(self._rule_of, limits))
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
                if isinstance(limit, Limit) and limit.unit != "messages":
                    further.append(self._rule_of(limit))
                else:
                    function.refuse(item, "limits in requests or in tokens")
        for rule in further:
            if rule.applies(facts) and all(rule.name != other.name for other in found):
                found.append(rule)
        return tuple(found)

    def _ask(self, facts: RequestFacts, rule_set: RuleSet) -> Plan:
        """The plan of a request whose demands depend on it."""
        estimate = self._estimate_tokens(facts) if rule_set.limits_tokens else None
        tokens = estimate.total_tokens if estimate else 0
        asked = [(rule, rule.demand(facts, tokens, rule_set.max_delay_ns)) for rule in rule_set.rules]
        demands = [demand for _, demand in asked if demand is not None]
        if len(demands) < len(asked):
            rules = tuple(rule for rule, demand in asked if demand is not None)
            rule_set = self._rule_set_of(rules, rule_set.max_delay_ns)
        return Plan(rule_set, demands, tokens=tokens, estimate=estimate)

    def _estimate_tokens(self, facts: RequestFacts) -> Estimate | None:
        if self._estimate is not None:
            tokens = self._estimate(facts)
            if tokens is None:
                return None
            if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= 10**12:
                self._estimate.refuse(tokens, "a whole number of at least 0, or None")
                return None
            return Estimate(input_tokens=0, output_tokens=tokens, stands=True)
        default = self.settings.default_output_tokens
        if facts.body is not None:
            return estimate_tokens(facts.body, default_output_tokens=default)
        if facts.content_length is not None:
            return estimate_from_length(facts.content_length, default_output_tokens=default)
        return None

    def interpret(self, account: str, plan: Plan, reply: Reply) -> Decision:
        """What the store's answer to a plan means for the request."""
        times_to_full_ns = reply.times_to_full_ns
        if reply.degraded:
            return Decision(Outcome.DEGRADED, reply.allowed or not self._enforces, account, plan, times_to_full_ns)
        if not reply.allowed:
            return Decision(Outcome.DENIED, not self._enforces, account, plan, times_to_full_ns)
        if plan.rule_set.max_delay_ns:
            delay_ns = max(
                (
                    (time_to_full_ns or 0) - rule.bucket.capacity_ns
                    for rule, time_to_full_ns in zip(plan.rules, times_to_full_ns, strict=True)
                ),
                default=0,
            )
            if delay_ns > 0:
                if not self._enforces:
                    delay_ns = 0
                return Decision(Outcome.DELAYED, True, account, plan, times_to_full_ns, delay_ns)
        return Decision(_ALLOWED, True, account, plan, times_to_full_ns)

    def without_store(self, account: str, plan: Plan) -> Decision:
        """The decision on a plan that asks nothing of the store: exempt, refused, or no limit met."""
        if plan.exempt:
            return Decision(Outcome.EXEMPT, True, account, plan)
        if plan.refused:
            return Decision(Outcome.DENIED, not self._enforces, account, plan)
        return Decision(_ALLOWED, True, account, plan)

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

    def join(self, first: Decision, second: Decision) -> Decision:
        """Two decisions that let in the same request, as one: what its client is told, and what a refund gives back.

        One that the store was not asked for, or could not be, has nothing to tell.
        """
        if not second.times_to_full_ns:
            return first
        if not first.times_to_full_ns:
            return second
        plan = Plan(
            self._rule_set_of((*first.plan.rules, *second.plan.rules), first.plan.rule_set.max_delay_ns),
            (*first.plan.demands, *second.plan.demands),
            tokens=first.plan.tokens,
            estimate=first.plan.estimate,
        )
        times_to_full_ns = (*first.times_to_full_ns, *second.times_to_full_ns)
        return Decision(first.outcome, True, first.account, plan, times_to_full_ns, first.delay_ns)

    def refund(self, decision: Decision) -> list[Adjustment]:
        """What to give back for a request that was let in and then not served after all."""
        if decision.outcome not in (Outcome.ALLOWED, Outcome.DELAYED):
            return []
        plan = decision.plan
        return [
            Adjustment(rule.name, -demand.cost_ns, rule.bucket.capacity_ns, demand.key)
            for rule, demand in zip(plan.rules, plan.demands, strict=True)
            if demand.cost_ns
        ]
