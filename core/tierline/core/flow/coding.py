"""Codecs as a node uses them: one instance per token, unknown tokens refused by name."""

from __future__ import annotations

from functools import cache

from tierline.core import catalog
from tierline.core.errors import UnknownCodec
from tierline.core.flow.levels import LevelRunner
from tierline.core.plan import Plan
from tierline.core.protocols import Codec
from tierline.core.types import Array, Payload, TensorSpec
from tierline.core.wire import MAX_ROWS

OUTPUT_CODEC = "raw"
"""Outputs of exits are a few bytes and decide answers: they travel as they are."""
EXACT_CODEC = "float16"
"""For fused level-0 features that are no longer +-1 (means, or zeros where a view is absent)."""


@cache
def codec_for(token: str) -> Codec:
    """The codec a peer named; only names, for a catalogue also takes files. Raises UnknownCodec."""
    known = catalog.names("codec")
    if token not in known:
        raise UnknownCodec(f"no such codec: {token[:40]!r}{catalog.nearest(token[:40], known)}")
    codec: Codec = catalog.make("codec", token)
    return codec


def decode_rows(payload: Payload, spec: TensorSpec) -> Array:
    """Decode a tensor from a peer. Raises UnknownCodec or CorruptPayload."""
    return codec_for(payload.codec).decode(payload, spec, max_rows=MAX_ROWS)


def encode_outputs(x_B: Array) -> Payload:
    return codec_for(OUTPUT_CODEC).encode(x_B)


def encode_fused(plan: Plan, runner: LevelRunner, level: int, feature_B: Array, all_present: bool) -> Payload:
    """Code a fused feature: the Plan's codec where fusion left the values in its range."""
    keeps_values = level > 0 or (all_present and runner.level.feature_aggregator != "avg_pool")
    return codec_for(plan.codecs[level] if keeps_values else EXACT_CODEC).encode(feature_B)
