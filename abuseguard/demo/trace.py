"""The demo's own traffic: six hours of an imaginary service, made by this module and the same every time.

Four kinds of accounts. People ask a few questions an evening. Two products answer their own users behind one system
prompt each. One company works through its documents at night. And one campaign harvests answers: the same request in
many variations, as fast as it can, over six accounts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abuseguard.replay.logged_request import LoggedRequest, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

START = 1_764_619_200.0  # 2025-12-01T20:00:00Z
HOUR = 3600.0

PEOPLE, HARVEST_ACCOUNTS, BATCH_DOCUMENTS = 40, 6, 300
KINDS = {
    "person": "people",
    "shop": "products",
    "travel": "products",
    "nightly": "nightly batch",
    "harvest": "harvesting",
}

_BROWSERS = ("Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0", "Mozilla/5.0 (Macintosh) Safari/18.2", "chat-app/4.2")
_OPENINGS = ("", "", "Hello! ", "Quick question: ", "Sorry to bother you again. ", "One more thing: ")
_QUESTIONS = (
    "how do I get {0} out of {1}?",
    "what could I cook with {0} for {2} people?",
    "my neighbour says {1} is bad for {0}. Is that true?",
    "write a short thank-you note to my {3} for the {0}.",
    "which is better for {1}, {0} or something cheaper?",
    "I have {2} hours in Lisbon with my {3}. What should we see?",
    "explain compound interest to my {3}, with {2} coins.",
)
_THINGS = ("red wine", "lentils", "an old bicycle", "beeswax", "leftover rice", "a fern", "chalk", "green tea")
_PLACES = ("a wool carpet", "a rented kitchen", "hard water", "a north-facing balcony", "a week of rain", "a tent")
_RELATIVES = ("aunt", "nine-year-old", "landlord", "grandfather", "colleague")
_PRODUCTS = {
    "shop-assistant": (
        "You help customers of a garden shop. Be brief and stay with gardening.",
        (
            "Is the {0}-litre watering can in stock?",
            "Where is my order {1}?",
            "Can I return seeds bought {0} days ago?",
        ),
    ),
    "travel-helper": (
        "You help travellers of a ferry line. Quote no prices.",
        ("Can I bring {0} bicycles aboard?", "Is sailing {1} on time?", "I lost a bag on deck {0}, booking {1}."),
    ),
}
_FIELDS = ("algebra", "probability", "organic chemistry", "contract law", "thermodynamics", "graph theory")
_LEVELS = ("a beginner", "an undergraduate", "a specialist")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caller:
    """What stays the same over an account's requests."""

    account: str
    ip: str
    user_agent: str
    plan: str
    stream_share: float
    output_tokens: tuple[int, int]
    system: str = ""


def demo_kind(account: str) -> str:
    """The kind of traffic that an account of the demo's own log belongs to.

    >>> demo_kind("harvest-3")
    'harvesting'
    """
    return KINDS[account.partition("-")[0]]


def demo_requests(seed: int = 1) -> list[LoggedRequest]:
    """About two thousand requests in time order, the same for the same ``seed``.

    >>> requests = demo_requests()
    >>> len(requests), len({request.account for request in requests})
    (2105, 49)
    """
    rng = random.Random(seed)
    requests = [*_people(rng), *_products(rng), *_nightly_batch(rng), *_campaign(rng)]
    return sorted(requests, key=lambda request: request.ts)


def _people(rng: random.Random) -> Iterator[LoggedRequest]:
    """A few conversations each: a question, some time to read the answer, perhaps another question."""
    for number in range(1, PEOPLE + 1):
        person = _Caller(
            account=f"person-{number:02d}",
            ip=f"203.0.113.{number}",
            user_agent=rng.choice(_BROWSERS),
            plan=rng.choice(("free", "plus")),
            stream_share=0.9,
            output_tokens=(40, 500),
        )
        for conversation in range(rng.randint(1, 3)):
            seconds = rng.random() * 5.5 * HOUR
            for _ in range(rng.randint(3, 9)):
                question = rng.choice(_OPENINGS) + rng.choice(_QUESTIONS).format(
                    rng.choice(_THINGS), rng.choice(_PLACES), rng.randint(2, 9), rng.choice(_RELATIVES)
                )
                yield _request(rng, person, seconds, question, session=f"{person.account}-{conversation}")
                seconds += 20 + rng.expovariate(1 / 70)


def _products(rng: random.Random) -> Iterator[LoggedRequest]:
    """Two assistants with a fixed system prompt, asked by whoever is awake."""
    for number, (account, (system, questions)) in enumerate(_PRODUCTS.items(), 1):
        product = _Caller(
            account=account,
            ip=f"198.51.100.{number}",
            user_agent="openai-python/1.55.0",
            plan="team",
            stream_share=0.5,
            output_tokens=(20, 160),
            system=system,
        )
        for visitor, seconds in enumerate(sorted(rng.random() * 6 * HOUR for _ in range(240))):
            question = rng.choice(questions).format(rng.randint(1, 30), rng.randint(10_000, 99_999))
            yield _request(rng, product, seconds, question, session=f"{account}-{visitor}")


def _nightly_batch(rng: random.Random) -> Iterator[LoggedRequest]:
    """One template over many documents, one after the other, about one every two seconds."""
    batch = _Caller(
        account="nightly-reports",
        ip="198.51.100.77",
        user_agent="axios/1.7.2",
        plan="team",
        stream_share=0.0,
        output_tokens=(20, 60),
    )
    seconds = 5 * HOUR
    for number in range(1, BATCH_DOCUMENTS + 1):
        report = f"Report {number}: line {rng.randint(1, 9)} stood still for {rng.randint(2, 90)} minutes, " * 3
        yield _request(rng, batch, seconds, f"Summarise in one sentence.\n\n{report}", session="nightly")
        seconds += 1.5 + rng.random()


def _campaign(rng: random.Random) -> Iterator[LoggedRequest]:
    """Runs of long answers, several requests a second, from accounts that take turns."""
    for number in range(1, HARVEST_ACCOUNTS + 1):
        harvester = _Caller(
            account=f"harvest-{number}",
            ip=f"192.0.2.{number * 7}",
            user_agent="openai-python/1.55.0",
            plan="free",
            stream_share=0.3,
            output_tokens=(700, 1_500),
        )
        for run in range(2):
            seconds = (0.4 * number + 2.6 * run + 0.2 * rng.random()) * HOUR
            for step in range(68):
                prompt = (
                    f"You are a teacher of {rng.choice(_FIELDS)}. Set problem {rng.randint(1, 10**6)} for "
                    f"{rng.choice(_LEVELS)}, then solve it. Think step by step and show all of your reasoning."
                )
                yield _request(rng, harvester, seconds, prompt, session=f"{harvester.account}-{run}-{step}")
                seconds += rng.expovariate(4)


def _request(rng: random.Random, caller: _Caller, seconds: float, prompt: str, *, session: str) -> LoggedRequest:
    messages = [Message(role="system", content=caller.system)] if caller.system else []
    messages.append(Message(role="user", content=prompt))
    return LoggedRequest(
        ts=round(START + seconds, 3),
        account=caller.account,
        ip=caller.ip,
        user_agent=caller.user_agent,
        plan=caller.plan,
        session=session,
        model="demo-large",
        stream=rng.random() < caller.stream_share,
        messages=tuple(messages),
        input_tokens=sum(len(message.content) for message in messages) // 4,
        output_tokens=rng.randint(*caller.output_tokens),
    )
