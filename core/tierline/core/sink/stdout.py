"""One line per answer for a person at the terminal."""

from __future__ import annotations

import sys

from tierline.core.errors import ConfigError
from tierline.core.protocols import Outcome


class Stdout:
    """`orin-1/1/42 cam-1: cat 0.93 at local, 2 views, 4.1 ms`; `!` before a label that is not the truth.

    A detector's line names every box, `cat 0.93, dog 0.41 at ...`, or `nothing`; a regression's the numbers.
    """

    def __init__(self, *, location: str = "") -> None:
        if location:
            raise ConfigError(f"stdout takes no location, got {location!r}; a file is jsonl:{location}")

    async def put(self, outcome: Outcome) -> None:
        print(_line(outcome), flush=True)

    async def close(self) -> None:
        sys.stdout.flush()


def _line(outcome: Outcome) -> str:
    views = f"{outcome.num_views} view{'' if outcome.num_views == 1 else 's'}"
    total = f", {outcome.ledger[0].residence_ns / 1e6:.1f} ms" if outcome.ledger else ""
    degraded = f", degraded: {outcome.reason}" if outcome.degraded else ""
    return f"{outcome.id} {outcome.view}: {_said(outcome)} at {outcome.exit}, {views}{total}{degraded}"


def _said(outcome: Outcome) -> str:
    answer, truth = outcome.answer, outcome.truth
    if answer.boxes is not None:
        return ", ".join(f"{box.label} {box.confidence:.2f}" for box in answer.boxes) or "nothing"
    if answer.values is not None:
        return answer.label
    wrong = isinstance(truth, int | str) and truth != (answer.label if isinstance(truth, str) else answer.index)
    return f"{'!' if wrong else ''}{answer.label} {answer.confidence:.2f}"
