"""Answers handed to a user's function: `python:module:function` or `python:./file.py:function`."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from tierline.core.catalog import import_file, nearest
from tierline.core.errors import ConfigError
from tierline.core.protocols import Outcome

_log = logging.getLogger("tierline.sink")


class Python:
    """Calls `function(outcome)`: a coroutine function on the event loop, any other on one thread of its own.

    So a slow function never holds up inference, and calls come in order, one at a time. A call that raises is logged
    with its traceback the first time and counted in `num_failed`.
    """

    def __init__(self, *, location: str) -> None:
        place, _, name = location.rpartition(":")
        if not place or not name:
            raise ConfigError(f"{location!r}: write python:MODULE:FUNCTION or python:./FILE.py:FUNCTION")
        module = import_file(Path(place)) if place.endswith(".py") else _load_module(place)
        function = getattr(module, name, None)
        if not callable(function):
            near = nearest(name, [n for n, value in vars(module).items() if callable(value)])
            raise ConfigError(f"{place} has no function {name!r}{near}")
        self._function: Callable[[Outcome], Any] = function
        self._location = location
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"sink {name}")
        self.num_failed = 0

    async def put(self, outcome: Outcome) -> None:
        try:
            if inspect.iscoroutinefunction(self._function):
                await self._function(outcome)
            else:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._function, outcome)
        except Exception:
            self.num_failed += 1
            if self.num_failed == 1:
                _log.exception("sink python:%s raised; later failures are only counted", self._location)

    async def close(self) -> None:
        """Wait for the call under way."""
        await asyncio.to_thread(self._thread.shutdown)


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"no module {name!r} on the Python path; a file is python:./FILE.py:FUNCTION") from error
        raise ConfigError(f"module {name!r} needs {error.name!r}, which is not installed") from error
