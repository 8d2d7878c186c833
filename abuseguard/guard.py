"""The guard: asks the policy what a request needs, a store whether it can have it, and the policy what that means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from abuseguard._callback import Callback
from abuseguard._fault_log import FaultLog, logger
from abuseguard.buckets.connect import async_store_for, store_for
from abuseguard.buckets.fallback import Fallback
from abuseguard.buckets.memory import AsyncMemoryStore
from abuseguard.buckets.store import Adjustment, AsyncStore, Reply, Store
from abuseguard.clock import Clock, SystemClock
from abuseguard.decision import Decision, Outcome
from abuseguard.errors import StoreError, StoreFullError
from abuseguard.facts import RequestFacts
from abuseguard.headers import Answer, EncodedFields, Fields, LimitFields, denial
from abuseguard.limit import Limit
from abuseguard.policy import Plan, Policy
from abuseguard.settings import Settings


def _say_nothing(decision: Decision) -> EncodedFields:
    return []


class _GuardCore:
    """What both guards share: everything but the lines that wait for a store."""

    def __init__(self, settings: Settings, clock: Clock | None) -> None:
        self.settings = settings
        self.clock = SystemClock() if clock is None else clock
        self.policy = Policy(settings)
        self._counts = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        #: How many times a correction could not be written to the store, so that what was reserved stands.
        self.unsettled = 0
        self._speaks = settings.mode == "enforce" and settings.headers != "none"
        self._fields = LimitFields(settings.headers, self.clock)
        #: What ``fields`` returns, as ASGI has it. No method: one would double the calls that every response makes.
        self.encoded_fields: Callable[[Decision], EncodedFields] = (
            self._fields.write_encoded if self._speaks else _say_nothing
        )
        self._fallback = Fallback(
            settings.on_store_failure, workers=settings.workers, max_keys=settings.max_keys, clock=self.clock
        )
        self._failing = False
        self._unread = FaultLog()
        self._full = FaultLog()
        self._unsettled_log = FaultLog()
        self._observer = settings.observer and Callback("observer", settings.observer, None)
        self._response = settings.response and Callback("response", settings.response, None)

    def _plan(self, facts: RequestFacts, may_delay: bool, limits: Sequence[Limit] = ()) -> Plan:
        try:
            return self.policy.plan(facts, may_delay, limits)
        except Exception:  # noqa: BLE001 - a fault of ours is no reason to fail the request
            return self._let_through()

    def _plan_limits(self, facts: RequestFacts, limits: Sequence[Limit]) -> Plan:
        try:
            return self.policy.plan_limits(facts, limits)
        except Exception:  # noqa: BLE001 - as above
            return self._let_through()

    def _plan_message(self, facts: RequestFacts) -> Plan:
        try:
            return self.policy.plan_message(facts)
        except Exception:  # noqa: BLE001 - as above
            return self._let_through()

    def _let_through(self) -> Plan:
        """The plan of a request that we do not understand: it is still the application's, and must not fail by us."""
        # Nothing of the request itself: it may hold keys and prompts.
        self._unread.report("a request could not be read and is let through", with_traceback=True)
        return self.policy.exempted

    def _answer_for_store(self, account: str, plan: Plan, error: StoreError) -> Reply:
        if isinstance(error, StoreFullError):
            # It answers everyone whom it knows: neither down nor to come back.
            self._full.report("a new account is answered by the policy %r: %s", self.settings.on_store_failure, error)
        elif not self._failing:
            self._failing = True
            logger.error(
                "the store failed (%s); requests are answered by the policy %r until it is back",
                error,
                self.settings.on_store_failure,
            )
        return self._fallback.answer(account, plan.demands)

    def _recovered(self) -> None:
        self._failing = False
        logger.warning("the store is back")

    def _report_unsettled(self, error: StoreError) -> None:
        self.unsettled += 1
        self._unsettled_log.report("an account's buckets could not be corrected: %s", error)

    def _decide_by(self, store: Store, facts: RequestFacts, plan: Plan) -> Decision:
        account = facts.account
        if plan.demands:
            try:
                reply = store.take(account, plan.demands)
                if self._failing and reply.allowed:
                    self._recovered()
            except StoreError as error:
                reply = self._answer_for_store(account, plan, error)
            decision = self.policy.interpret(account, plan, reply)
        else:
            decision = self.policy.without_store(account, plan)
        # As in `_conclude`, without its call.
        self._counts[decision.outcome._value_] += 1
        if self._observer is not None:
            self._observer(facts, decision)
        return decision

    def _conclude(self, facts: RequestFacts, decision: Decision) -> Decision:
        self._counts[decision.outcome._value_] += 1
        if self._observer is not None:
            self._observer(facts, decision)
        return decision

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How many decisions have come out in each way."""
        return {outcome: self._counts[outcome.value] for outcome in Outcome}

    def fields(self, decision: Decision) -> Fields:
        """The response fields that tell the client its limits; none in ``mode="observe"``."""
        return self._fields.write(decision) if self._speaks else []

    def answer(self, facts: RequestFacts, decision: Decision) -> Answer:
        """The whole response to a request that was not admitted."""
        answer = denial(decision, jitter=self.settings.retry_after_jitter)
        answer = Answer(status=answer.status, headers=[*answer.headers, *self.fields(decision)], body=answer.body)
        if self._response is not None:
            own = self._response(facts, decision, answer)
            if isinstance(own, Answer) and own.is_sendable:
                return own
            if own is not None:
                self._response.refuse(own, "an Answer that a server can send, or None")
        return answer


class Guard(_GuardCore):
    """Decides requests for callers that may block: one call before the application, one after if tokens are limited.

    Args:
        settings: what the operator decided.
        clock: where the time comes from; Redis has its own.
        store: where buckets are kept. Default: what ``settings.store`` names.

    >>> guard = Guard(Settings(limits=["2/minute"], missing_address="shared"))
    >>> [guard.decide(RequestFacts("GET", "/")).outcome.value for _ in range(3)]
    ['allowed', 'allowed', 'denied']
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None, store: Store | None = None) -> None:
        super().__init__(settings, clock)
        self._store = store_for(settings, self.clock) if store is None else store

    def decide(self, facts: RequestFacts, limits: Sequence[Limit] = ()) -> Decision:
        """Whether this request goes to the application, by the settings and its route's own limits. Never raises."""
        return self._decide_by(self._store, facts, self._plan(facts, False, limits))

    def decide_limits(self, facts: RequestFacts, limits: Sequence[Limit]) -> Decision:
        """The same for a route's own limits, besides those of the settings."""
        return self._decide_by(self._store, facts, self._plan_limits(facts, limits))

    def settle(self, decision: Decision, used_tokens: int) -> None:
        """Corrects the limits in tokens by what was really used."""
        self._adjust(decision, self.policy.settlement(decision, used_tokens))

    def refund(self, decision: Decision) -> None:
        """Gives back what a request was charged that was let in and then not served after all."""
        self._adjust(decision, self.policy.refund(decision))

    def _adjust(self, decision: Decision, adjustments: Sequence[Adjustment]) -> None:
        if adjustments:
            try:
                self._store.adjust(decision.account, adjustments)
            except StoreError as error:
                self._report_unsettled(error)

    def clear(self, account: str) -> None:
        """Makes the account's buckets full again.

        Raises:
            StoreError: the store cannot be reached.
        """
        self._store.clear(account, self.policy.bucket_names)

    def close(self) -> None:
        """Gives back the store's connections."""
        self._store.close()


class AsyncGuard(_GuardCore):
    """Decides requests for callers on an event loop; the same answers as ``Guard``, and requests can be delayed."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None, store: AsyncStore | None = None) -> None:
        super().__init__(settings, clock)
        self._store = async_store_for(settings, self.clock) if store is None else store
        self._memory = self._store.store if isinstance(self._store, AsyncMemoryStore) else None

    def decide_at_once(self, facts: RequestFacts, may_delay: bool = False) -> Decision | None:
        """What ``decide`` would answer, if that needs no waiting, as buckets are in memory; None if it does.

        A coroutine that never waits costs half as much as taking from a bucket.
        """
        if self._memory is None:
            return None
        try:
            plan = self.policy.plan(facts, may_delay)
        except Exception:  # noqa: BLE001 - as in `_plan`, without its call
            plan = self._let_through()
        return self._decide_by(self._memory, facts, plan)

    # These three return the coroutine of `_decide` instead of being coroutines around it: one frame less to wait in.
    def decide(
        self, facts: RequestFacts, limits: Sequence[Limit] = (), *, may_delay: bool = False
    ) -> Awaitable[Decision]:
        """Whether this request goes to the application, by the settings and its route's own limits. Never raises."""
        return self._decide(facts, self._plan(facts, may_delay, limits))

    def decide_message(self, facts: RequestFacts) -> Awaitable[Decision]:
        """The same for one message on a WebSocket."""
        return self._decide(facts, self._plan_message(facts))

    def decide_limits(self, facts: RequestFacts, limits: Sequence[Limit]) -> Awaitable[Decision]:
        """The same for a route's own limits, besides those of the settings."""
        return self._decide(facts, self._plan_limits(facts, limits))

    async def _decide(self, facts: RequestFacts, plan: Plan) -> Decision:
        if self._memory is not None:
            return self._decide_by(self._memory, facts, plan)
        account = facts.account
        if not plan.demands:
            return self._conclude(facts, self.policy.without_store(account, plan))
        try:
            reply = await self._store.take(account, plan.demands)
            if self._failing and reply.allowed:
                self._recovered()
        except StoreError as error:
            reply = self._answer_for_store(account, plan, error)
        return self._conclude(facts, self.policy.interpret(account, plan, reply))

    async def settle(self, decision: Decision, used_tokens: int) -> None:
        """Corrects the limits in tokens by what was really used."""
        await self._adjust(decision, self.policy.settlement(decision, used_tokens))

    async def refund(self, decision: Decision) -> None:
        """Gives back what a request was charged that was let in and then not served after all."""
        await self._adjust(decision, self.policy.refund(decision))

    async def _adjust(self, decision: Decision, adjustments: Sequence[Adjustment]) -> None:
        if adjustments:
            try:
                await self._store.adjust(decision.account, adjustments)
            except StoreError as error:
                self._report_unsettled(error)

    async def clear(self, account: str) -> None:
        """Makes the account's buckets full again.

        Raises:
            StoreError: the store cannot be reached.
        """
        await self._store.clear(account, self.policy.bucket_names)

    async def close(self) -> None:
        """Gives back the store's connections."""
        await self._store.close()
