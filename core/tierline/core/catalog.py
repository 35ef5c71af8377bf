"""Finds algorithms by name. One file per algorithm: file name = catalogue name = TOML value = wire token.

`make("codec", "affine", bits=4)` imports `tierline.core.codec.affine` only, and calls the one public class that the
file defines. A file whose algorithm has several parts defines several, and the part is named too:
`make("strategy", "fedavg", "Server", share=0.1)`. A name ending in `.py` loads a user's own file by path.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tierline.core.errors import ConfigError, MissingDependency

ROOMS = {
    "codec": "tierline.core.codec",
    "engine": "tierline.core.engine",
    "exit": "tierline.core.exit",
    "aggregate": "tierline.core.aggregate",
    "task": "tierline.core.task",
    "source": "tierline.core.source",
    "sink": "tierline.core.sink",
    "gossip": "tierline.learning.gossip",
    "topology": "tierline.learning.topology",
    "reduce": "tierline.learning.reduce",
    "strategy": "tierline.learning.strategy",
    "compress": "tierline.learning.compress",
    "partition": "tierline.models.data.partition",
    "model": "tierline.models.zoo",
    "cut": "tierline.models.partition",
}


@cache
def names(room: str) -> tuple[str, ...]:
    """Names in a room, sorted; private files (leading underscore) are helpers, not algorithms."""
    package = importlib.import_module(ROOMS[room])
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def load(room: str, name: str, part: str | None = None) -> type[Any]:
    """The class of one algorithm, or of one part of it. Raises ConfigError naming the nearest valid name."""
    classes = parts(room, name)
    if part is not None:
        if part not in classes:
            raise ConfigError(f"{room} {name!r}: defines no class {part!r}{nearest(part, list(classes))}")
        return classes[part]
    if len(classes) != 1:
        raise ConfigError(f"{room} {name!r}: a file must define exactly one public class, this defines {len(classes)}")
    return next(iter(classes.values()))


def is_usable(room: str, name: str) -> bool:
    """Whether the packages that an algorithm needs are installed."""
    try:
        load(room, name)
    except MissingDependency:
        return False
    return True


def parts(room: str, name: str) -> dict[str, type[Any]]:
    """The public classes of one algorithm's file, by name. Raises ConfigError naming the nearest valid name."""
    module = import_file(Path(name)) if name.endswith(".py") else _import_member(room, name)
    return {
        key: cls
        for key, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and not key.startswith("_")
    }


def make(room: str, name: str, part: str | None = None, /, **options: Any) -> Any:
    """Build one algorithm, or one part of it; its keyword-only constructor is its schema."""
    cls = load(room, name, part)
    _check_options(room, name, options, list(inspect.signature(cls).parameters))
    return cls(**options)


def maker(room: str, name: str, options: Mapping[str, Any]) -> Callable[[str], Any]:
    """`make` for the parts of one algorithm: the parts share `options`, and each is given those that it knows.

    Raises ConfigError for an option that no part knows.
    """
    known = {key: list(inspect.signature(cls).parameters) for key, cls in parts(room, name).items()}
    _check_options(room, name, options, sorted({option for valid in known.values() for option in valid}))

    def build(part: str) -> Any:
        return load(room, name, part)(**{key: options[key] for key in options if key in known.get(part, ())})

    return build


def _check_options(room: str, name: str, options: Mapping[str, Any], valid: list[str]) -> None:
    for key in options:
        if key not in valid:
            raise ConfigError(f"{room} {name!r}: no option {key!r}{nearest(key, valid)}")


def nearest(word: str, valid: list[str] | tuple[str, ...]) -> str:
    """`; nearest is "x"`, or the whole list where nothing is near."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.52)
    if close:
        return f'; nearest is "{close[0]}"'
    return f"; valid: {', '.join(valid)}" if valid else ""


def _import_member(room: str, name: str) -> ModuleType:
    if name not in names(room):
        raise ConfigError(f"no such {room}: {name!r}{nearest(name, names(room))}")
    try:
        return importlib.import_module(f"{ROOMS[room]}.{name}")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{room} {name!r} needs the Python package {error.name!r}: pip install {error.name}, or the extra "
            "of tierline that holds it"
        ) from error


def import_file(path: Path) -> ModuleType:
    """A user's own file as a module. Raises ConfigError where there is none."""
    spec = importlib.util.spec_from_file_location(f"tierline_user_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path}: no such file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
