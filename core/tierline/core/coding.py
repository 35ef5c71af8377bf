"""Codecs by wire token. A token is stages joined by `+`: `affine:4`, `sparse_bitmap+affine:4+zstd`.

A stage is a catalogue name and its options, split by `:`; positional ones in the order of the codec's keyword-only
constructor, others as `key=value` (`affine:4:rounding=stochastic`). Stages are of three roles:

- `values`: turns rows of values into bytes; exactly one, `raw` where none is named.
- `select`: chooses values and hands them to the stages right of it (`sparse_bitmap`, `topk`).
- `bytes`: a lossless last stage over all bytes made so far (`zstd`).

A `select` or `bytes` class takes the codec it wraps as its first argument, and is a codec itself.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tierline.core import catalog
from tierline.core.errors import ConfigError, MissingDependency, UnknownCodec
from tierline.core.protocols import Codec
from tierline.core.types import TensorSpec

if TYPE_CHECKING:
    from tierline.core.codec._cuda import CudaCodec
    from tierline.kernels.cuda import Device

MAX_TOKEN = 120
"""Characters of a token; a peer's longer one is refused before it is parsed."""
MAX_STAGES = 4
_WRITTEN = {
    int: re.compile("-?[0-9]+"),
    float: re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?"),
    str: re.compile("[a-z0-9_]+"),
}
"""How options are written: less than Python reads, so that a decoder in another language reads them alike."""
_KINDS: dict[type[Any], str] = {int: "an integer", float: "a number", str: "a word"}
_SOME_VALUES = 64


@lru_cache(maxsize=256)
def codec_for(token: str) -> Codec:
    """The codec of a token, one instance per token. Raises UnknownCodec naming the stage that is wrong."""
    if len(token) > MAX_TOKEN or token.count("+") >= MAX_STAGES:
        raise UnknownCodec(
            f"no such codec: {token[:40]!r}; a token has 1 to {MAX_STAGES} stages, joined by '+', "
            f"and at most {MAX_TOKEN} characters"
        )
    stages = token.split("+")
    if "" in stages:
        raise UnknownCodec(f"codec {token!r}: an empty stage")
    made: Codec | None = None
    after = [stage for stage in stages if _role(stage) == "bytes"]
    before = [stage for stage in stages if _role(stage) != "bytes"]
    if stages != before + after:
        raise UnknownCodec(f"codec {token!r}: {after[0]!r} packs bytes, so it comes last")
    if not before or _role(before[-1]) == "select":
        made = codec_for("raw")
    for stage in reversed(before):
        if _role(stage) == "values" and made is not None:
            raise UnknownCodec(
                f"codec {token!r}: {stage!r} turns values into bytes, so it is the last but for those that pack"
            )
        made = _make(stage, made)
    for stage in after:
        made = _make(stage, made)
    assert made is not None  # there is at least one stage
    if len(made.token) > MAX_TOKEN:  # it travels as the codec writes it
        raise UnknownCodec(f"codec {token[:40]!r}: written out it has {len(made.token)} characters, above {MAX_TOKEN}")
    return made


def codec_around(token: str, make: Callable[[str], Codec]) -> Codec:
    """As `codec_for`, but what is left of the byte stages is made by `make` from its token: values lie elsewhere."""
    stages = codec_for(token).token.split("+")
    after = [stage for stage in stages if _role(stage) == "bytes"]
    made = make("+".join(stages[: len(stages) - len(after)]))
    for stage in after:
        made = _make(stage, made)
    return made


def gpu_codec(token: str, gpu: Device | int = 0) -> CudaCodec:
    """The codec of a token for arrays on an NVIDIA GPU: see `CudaCodec`."""
    from tierline.core.codec._cuda import CudaCodec

    return CudaCodec(token, gpu)


def stage_names(token: str) -> tuple[str, ...]:
    """Catalogue names that a token uses, which both ends of a link must have."""
    return tuple(stage.split(":")[0] for stage in token.split("+"))


def canonical(name: str, options: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Token of one stage: its name and the options that differ from their defaults, the first one positional.

    Floats have the fewest digits that read back as the same float, for whoever decodes makes the codec from the token.
    """
    changed = {key: value for key, value in options.items() if value != defaults[key]}
    first = next(iter(defaults), None)
    words = [str(value).removesuffix(".0") if isinstance(value, float) else str(value) for value in changed.values()]
    return ":".join([name, *(w if key == first else f"{key}={w}" for key, w in zip(changed, words, strict=True))])


def _role(stage: str) -> str:
    role: str = _class(stage.split(":")[0]).role
    return role


def _class(name: str) -> type[Any]:
    known = catalog.names("codec")  # only names, for a catalogue also takes files
    if name not in known:
        raise UnknownCodec(f"no such codec: {name[:40]!r}{catalog.nearest(name[:40], known)}")
    try:
        return catalog.load("codec", name)
    except MissingDependency as error:
        raise UnknownCodec(str(error)) from None


def _make(stage: str, inner: Codec | None) -> Codec:
    name, *words = stage.split(":")
    cls = _class(name)
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    types = {p.name: type(p.default) for p in parameters}
    options: dict[str, Any] = {}
    for at, word in enumerate(words):
        key, equals, value = word.partition("=")
        if not equals:
            if at >= len(types):
                raise UnknownCodec(f"codec {stage!r}: takes at most {len(types)} options")
            key, value = list(types)[at], word
        if key not in types:
            raise UnknownCodec(f"codec {stage!r}: no option {key!r}{catalog.nearest(key, list(types))}")
        if key in options:
            raise UnknownCodec(f"codec {stage!r}: {key} is given twice")
        options[key] = _read(stage, key, value, types[key])
    try:
        made: Codec = cls(**options) if inner is None or cls.role == "values" else cls(inner, **options)
    except ConfigError as error:
        raise UnknownCodec(f"codec {stage!r}: {error}") from None
    if cls.role == "select" and inner is not None:
        _check_saves(stage, inner)
    return made


def _read(stage: str, key: str, value: str, kind: type[Any]) -> Any:
    if not _WRITTEN[kind].fullmatch(value):
        raise UnknownCodec(f"codec {stage!r}: {key} is {value!r}, not {_KINDS[kind]} as tokens write it")
    return kind(value)


def _check_saves(stage: str, inner: Codec) -> None:
    """Raise UnknownCodec where chosen values, a row without channels, take more than as float32."""
    num_bytes = inner.size_bounds(TensorSpec("float32", (_SOME_VALUES,)))[0]
    if num_bytes > 4 * _SOME_VALUES:
        raise UnknownCodec(
            f"codec {stage!r}: {inner.token!r} takes {num_bytes / _SOME_VALUES:g} bytes for each value chosen, "
            "for these have no channels; leave out per=channel"
        )
