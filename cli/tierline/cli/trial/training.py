"""What `train` and `demo --retrain` share: torch or a clear word, overrides, progress."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from tierline.core.errors import MissingDependency, UsageError


def require_torch(command: str) -> None:
    """Raises MissingDependency."""
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency(f"{command} needs torch: pip install 'tierline[train]'")


def parse_overrides(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`model.device_filters=16` and `training.epochs=8` by section; values are numbers, booleans or words."""
    found: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not equals or not dot or section not in found:
            raise UsageError(f"--set {override}: write model.KEY=VALUE or training.KEY=VALUE")
        found[section][name] = _value(text)
    return found


def announce(say: Callable[[str], None], lines: int = 8) -> Callable[[Any], None]:
    """A progress callback that prints about so many lines."""

    def progress(report: Any) -> None:
        if report.epoch == report.epochs or report.epoch % max(1, report.epochs // lines) == 0:
            exits = "  ".join(f"{name} {value:.3f}" for name, value in report.accuracy.items())
            say(f"  epoch {report.epoch:3d}/{report.epochs}  loss {report.loss:6.3f}  validation: {exits}")

    return progress


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)
