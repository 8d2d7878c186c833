"""What a type checker makes of what users write; checked by mypy, and run, so that it is also true."""

from __future__ import annotations

from abuseguard import Limit, RequestFacts, Settings


def plan_limit(facts: RequestFacts) -> Limit:
    return Limit("6000/minute" if facts.plan == "paid" else "60/minute")


def cost(facts: RequestFacts) -> int:
    return 5 if facts.path.startswith("/v1/images") else 1


SETTINGS = Settings(
    limits=[
        Limit("600/minute", burst=50),
        Limit("200000/hour", unit="tokens"),
        Limit("1000/day", strategy="sliding-window-counter"),
        Limit("10/minute", routes=["/v1/**"], methods=["POST"], cost=cost, when=lambda facts: bool(facts.path)),
    ],
    store="memory://",
    mode="observe",
)


def mistakes() -> None:
    Limit("600/minute", 50)  # type: ignore[call-arg]
    Limit("600/minute", unit="bytes")  # type: ignore[arg-type]
    Settings(mode="sometimes")  # type: ignore[arg-type]
