"""A recipe from defaults and single values given by name: `training.epochs=8`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeVar, get_type_hints

from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError

_Config = TypeVar("_Config")


def build(
    cls: Callable[..., _Config],
    section: str,
    fixed: Mapping[str, Any],
    defaults: Mapping[str, Any],
    given: Mapping[str, Any],
) -> _Config:
    """A config of `defaults` overridden by `given`; `fixed` values follow from elsewhere and take no override.

    Raises ConfigError for an unknown or fixed key and for a value of the wrong type.
    """
    hints = get_type_hints(cls)
    valid = [name for name in hints if name not in fixed]
    for key, value in given.items():
        if key in fixed:
            raise ConfigError(f"{section}.{key}: follows from data, devices and seed, and cannot be set here")
        if key not in valid:
            raise ConfigError(f"{section}: no option {key!r}{nearest(key, valid)}")
        expected, fits = _KINDS[hints[key]]
        if not fits(value):
            raise ConfigError(f"{section}.{key} = {value!r}: expected {expected}")
    return cls(**{**defaults, **given, **fixed})


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_weights(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and _is_number(v) for k, v in value.items())


_KINDS: dict[Any, tuple[str, Callable[[object], bool]]] = {
    int: ("a whole number", _is_int),
    float: ("a number", _is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("a word", lambda value: isinstance(value, str)),
    Mapping[str, float]: ("numbers by name of an exit, which a command line cannot give", _are_weights),
}
"""By declared type of a field: how a message names it, and what fits."""
