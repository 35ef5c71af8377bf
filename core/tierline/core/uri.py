"""Where a view comes from and where answers go, as one line of text: `scheme:location?option=value&...`.

`dataset:./digits.npz?rate=50&loop=true`, `rtsp://10.0.0.11/stream1?width=320`, `webhook:http://127.0.0.1:8088/answer`.
The scheme is a name in the `source` or `sink` room (or a user's own `.py` file); options are its constructor's
keyword-only parameters of type int, float, bool or str. Options stand after the *last* question mark: an address with
a query of its own ends in one more, `rtsp://10.0.0.11/cam?channel=1&subtype=0?`.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, cast, get_type_hints
from urllib.parse import unquote

from tierline.core import catalog
from tierline.core.errors import ConfigError
from tierline.core.protocols import Sink, Source

_GIVEN = ("location", "view", "view_index")
_SCHEME = re.compile(r"[a-z][a-z0-9_]*|[^:?]+\.py")
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def parse(uri: str) -> tuple[str, str, dict[str, str]]:
    """Split into (scheme, location, options).

    `scheme://host/...` keeps the whole address as location. Option values may be percent-encoded.
    Raises ConfigError.
    """
    address, mark, query = uri.rpartition("?")
    if not mark:
        address, query = uri, ""
    scheme, _, location = address.partition(":")
    if not _SCHEME.fullmatch(scheme):
        raise ConfigError(f"{uri!r}: no scheme; write scheme:location, e.g. folder:./samples or stdout")
    if location.startswith("//"):
        location = address
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ConfigError(f"{uri!r}: option {part!r} is not key=value; {_QUERY_HINT}")
        if key in options:
            raise ConfigError(f"{uri!r}: option {key!r} is given twice")
        options[key] = unquote(value)
    return scheme, location, options


def open_source(uri: str, view: str, view_index: int, *, queue: str | None = None) -> Source:
    """Build the source of one view; `await source.open()` starts it.

    `queue` (`latest` or `all`, the key of agent.toml) stands in where the URI does not say.
    Raises ConfigError naming the nearest valid scheme or option; MissingDependency.
    """
    defaults = {} if queue is None else {"queue": queue}
    return cast(Source, _build("source", uri, defaults, view=view, view_index=view_index))


def open_sink(uri: str) -> Sink:
    """Build a sink, ready for `put`. Raises ConfigError naming the nearest valid scheme or option."""
    return cast(Sink, _build("sink", uri, {}))


def _build(room: str, uri: str, defaults: dict[str, str], **given: Any) -> Any:
    scheme, location, options = parse(uri)
    try:
        cls = catalog.load(room, scheme)
        return cls(location=location, **given, **_convert(cls, {**defaults, **options}))
    except ConfigError as error:
        raise ConfigError(f"{room} {uri!r}: {error}") from error


def _convert(cls: type[Any], options: dict[str, str]) -> dict[str, Any]:
    hints = get_type_hints(cls.__init__)
    types = {
        name: hints.get(name, str)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in _GIVEN
    }
    types = {name: kind for name, kind in types.items() if kind in (int, float, bool, str)}
    converted: dict[str, Any] = {}
    for key, text in options.items():
        if key not in types:
            near = catalog.nearest(key, list(types)) or "; it takes none"
            raise ConfigError(f"no option {key!r}{near} ({_QUERY_HINT})")
        try:
            converted[key] = _BOOLS[text.lower()] if types[key] is bool else types[key](text)
        except (KeyError, ValueError):
            wanted = "true or false" if types[key] is bool else types[key].__name__
            raise ConfigError(f"option {key} = {text!r} is not {wanted}") from None
    return converted


_QUERY_HINT = "an address with its own query ends in one more '?'"
