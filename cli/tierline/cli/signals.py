"""What commands that start processes make of SIGTERM and SIGINT: a clean stop.

SIGINT is set, too: a shell script starts what it puts into the background with SIGINT ignored, and who sends it anyway
means it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

EXIT_TERMINATED = 128 + signal.SIGTERM


def exit_on_signals() -> None:
    """SIGTERM ends the command, with everything cleaned up, by exit code 143; SIGINT interrupts it."""
    signal.signal(signal.SIGTERM, _terminate)
    _heed_interrupts()


def interrupt_on_signals() -> None:
    """Both interrupt the command."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _heed_interrupts()


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """SIGINT and SIGTERM that come meanwhile act at the end: a process that is being started is known by then."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


def _heed_interrupts() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    print("tierline: ended by SIGTERM", file=sys.stderr)
    sys.exit(EXIT_TERMINATED)
