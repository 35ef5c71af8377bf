"""One line per answer for a person at the terminal."""

from __future__ import annotations

import sys

from tierline.core.errors import ConfigError
from tierline.core.protocols import Outcome


class Stdout:
    """`orin-1/1/42 cam-1: cat 0.93 at local, 2 views, 4.1 ms`; `!` before a label that is not the truth."""

    def __init__(self, *, location: str = "") -> None:
        if location:
            raise ConfigError(f"stdout takes no location, got {location!r}; a file is jsonl:{location}")

    async def put(self, outcome: Outcome) -> None:
        print(_line(outcome), flush=True)

    async def close(self) -> None:
        sys.stdout.flush()


def _line(outcome: Outcome) -> str:
    answer = outcome.answer
    wrong = outcome.truth is not None and outcome.truth != answer.index
    views = f"{outcome.num_views} view{'' if outcome.num_views == 1 else 's'}"
    total = f", {outcome.ledger[0].residence_ns / 1e6:.1f} ms" if outcome.ledger else ""
    degraded = f", degraded: {outcome.reason}" if outcome.degraded else ""
    return (
        f"{outcome.id} {outcome.view}: {'!' if wrong else ''}{answer.label} {answer.confidence:.2f} "
        f"at {outcome.exit}, {views}{total}{degraded}"
    )
