"""`edge run` and `cloud run`: load the file, say when ready, stop cleanly on SIGTERM, SIGINT or a closed pipe."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tierline.core.errors import UsageError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

Runner = Callable[[Any, Callable[[dict[str, Any]], None]], Coroutine[Any, Any, None]]

_ROLES = {
    "edge": ("tierline.edge.config", "load_agent", "tierline.edge.agent", "run_agent"),
    "cloud": ("tierline.cloud.config", "load_cloud", "tierline.cloud.server", "run_cloud"),
}


class Parser(argparse.ArgumentParser):
    """Errors in one line, raised as UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


class OneLine(logging.Formatter):
    """One record, one line: a message's line breaks become spaces, while a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the library's name)
        record.message = " ".join(record.message.splitlines())
        return super().formatMessage(record)


def run_node(role: str, argv: Sequence[str]) -> int:
    """Run one node until it is told to stop. Raises TierlineError, or BuildError for the kernels."""
    options = _parse(role, argv)
    config_module, load, node_module, run = _ROLES[role]
    config = getattr(importlib.import_module(config_module), load)(options.config, overrides=options.set).value
    _settle_kernels()
    set_up_logging(config.node.id, options.log_level)
    runner: Runner = getattr(importlib.import_module(node_module), run)
    asyncio.run(serve(runner, config, options.stop_with_stdin))
    return 0


def _settle_kernels() -> None:
    """What was asked for cannot be had: said now, not at the first sample. Raises BuildError."""
    if os.environ.get("TIERLINE_KERNELS", "auto") != "auto":
        importlib.import_module("tierline.kernels.library").library()


def set_up_logging(node: str, level: str) -> None:
    """Log lines of all modules to standard error, once each, with the node's id."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(f"%(asctime)s %(levelname)s {node.replace('%', '%%')} %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _parse(role: str, argv: Sequence[str]) -> argparse.Namespace:
    name = "agent.toml" if role == "edge" else "cloud.toml"
    parser = Parser(prog=f"tierline {role} run", description=f"Run this machine's {role} node.", allow_abbrev=False)
    parser.add_argument("-c", "--config", type=Path, default=Path(name), help=f"the file to read (default: {name})")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    parser.add_argument("--insecure", action="store_true", help="allow plain connections beyond this machine")
    parser.add_argument("--log-level", choices=LEVELS, default="INFO", type=str.upper)
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(argv)
    if options.insecure:
        options.set.append("node.insecure=true")
    return options


async def serve(runner: Runner, config: Any, stop_with_stdin: bool) -> None:
    """Run until it ends, or until SIGTERM, SIGINT or a closed pipe tells it to stop."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(runner(config, _say_ready))
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if stop_with_stdin:
        _watch_stdin()
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise


def _watch_stdin() -> None:
    def watch() -> None:
        # Unbuffered, so that the thread holds no lock when the interpreter ends.
        with io.FileIO(0, closefd=False) as source:
            while source.read(4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _say_ready(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
