"""The stages of a token that run on a GPU."""

from __future__ import annotations

import inspect
from typing import Any

from tierline.kernels.cuda.affine import Affine
from tierline.kernels.cuda.bitplane import Bitplane
from tierline.kernels.cuda.dithered import Dithered
from tierline.kernels.cuda.float8_e4m3 import Float8E4M3
from tierline.kernels.cuda.half import Bfloat16, Float16
from tierline.kernels.cuda.radix import Radix
from tierline.kernels.cuda.raw import Raw
from tierline.kernels.cuda.sparse_bitmap import SparseBitmap
from tierline.kernels.cuda.topk import Topk
from tierline.kernels.cuda.work import Stage

_VALUES: dict[str, type[Stage]] = {
    "affine": Affine,
    "bfloat16": Bfloat16,
    "bitplane": Bitplane,
    "dithered": Dithered,
    "float16": Float16,
    "float8_e4m3": Float8E4M3,
    "radix": Radix,
    "raw": Raw,
}
_SELECT: dict[str, type[Stage]] = {"sparse_bitmap": SparseBitmap, "topk": Topk}

NAMES = (*_VALUES, *_SELECT)
"""Of the codecs that run on a GPU."""


def stage_for(token: str) -> Stage:
    """Of a token, as `affine:4:per=channel` or `topk:0.1+affine`. Raises ValueError for what only the CPU codes.

    Tokens are taken as `codec_for(token).token` writes them. How options may be written and which stages make sense
    around which is checked there, once; what is refused there may pass here.
    """
    words = token.split("+")
    if words[-1].split(":")[0] in _SELECT:
        words.append("raw")
    made = _make(token, words.pop(), _VALUES)
    for word in reversed(words):
        made = _make(token, word, _SELECT, made)
    return made


def _make(token: str, word: str, classes: dict[str, type[Stage]], *inner: Stage) -> Stage:
    name, *given = word.split(":")
    if name not in classes:
        raise ValueError(f"{token!r} does not run on a GPU: {word!r} does not, where {', '.join(classes)} do")
    cls: Any = classes[name]
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY}
    options: dict[str, Any] = {}
    for at, text in enumerate(given):
        key, equals, value = text.partition("=")
        if not equals:
            key, value = (list(defaults) + [text] * len(given))[at], text
        if key not in defaults or key in options:
            only = f"only {', '.join(defaults)}, each once" if defaults else "nor any other option"
            raise ValueError(f"{token!r} does not run on a GPU: {name} takes no {text!r}, {only}")
        options[key] = value
    try:
        made: Stage = cls(*inner, **{key: type(defaults[key])(value) for key, value in options.items()})
    except ValueError as error:
        raise ValueError(f"{token!r} does not run on a GPU: {name}: {error}") from None
    return made
