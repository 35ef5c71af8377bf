"""Codecs as a node uses them: one instance per token, unknown tokens refused by name."""

from __future__ import annotations

import logging

from tierline.core.coding import codec_for, stage_names
from tierline.core.errors import CodecError, CorruptPayload
from tierline.core.flow.levels import LOGITS
from tierline.core.link.messages import Verdict
from tierline.core.types import Array, Payload, TensorSpec
from tierline.core.wire import MAX_ROWS

_log = logging.getLogger(__name__)
OUTPUT_CODEC = "raw"
"""Outputs of exits are a few bytes and decide answers: they travel as they are."""
_told: set[tuple[str, str]] = set()
"""Senders and tokens whose fall back the log has named; as many as Plans have had."""
EXACT_CODEC = "float16"
"""For fused features that are no longer +-1 but still few bits wide (zeros where a view is absent)."""


def decode_rows(payload: Payload, spec: TensorSpec) -> Array:
    """Decode a tensor from a peer. Raises UnknownCodec or CorruptPayload."""
    return codec_for(payload.codec).decode(payload, spec, max_rows=MAX_ROWS)


def decode_outputs(verdict: Verdict, spec: TensorSpec) -> dict[str, Array]:
    """Outputs of a verdict by name, `logits` among them. Raises UnknownCodec or CorruptPayload."""
    if LOGITS not in verdict.outputs:
        raise CorruptPayload(f"a verdict without {LOGITS!r}")
    return {name: decode_rows(payload, spec) for name, payload in verdict.outputs.items()}


def encode_outputs(x_B: Array) -> Payload:
    return codec_for(OUTPUT_CODEC).encode(x_B)


def encode_feature(planned: str, feature_B: Array, sender: str = "") -> Payload:
    """Code a feature as planned, or as it is where the codec has no place for its values (NaN on a scale).

    The first time that a sender's link falls back from a codec, the log says so.
    """
    try:
        return codec_for(planned).encode(feature_B)
    except CodecError as error:
        _tell(sender, planned, str(error))
        return codec_for(OUTPUT_CODEC).encode(feature_B)


def _tell(sender: str, planned: str, why: str) -> None:
    if (sender, planned) not in _told:
        _told.add((sender, planned))
        _log.warning(
            "%s: features travel up as %s where codec %s cannot hold them: %s", sender, OUTPUT_CODEC, planned, why
        )


def encode_fused(planned: str, feature_B: Array, sender: str = "") -> Payload:
    """Code a fused feature as planned, but never as signs what is not +-1: the first codec that loses nothing.

    Absent views leave zeros, and means of +-1 lie anywhere between.
    """
    if "bitplane" in stage_names(planned):
        exact = (planned, EXACT_CODEC)
        planned = next((token for token in exact if codec_for(token).max_error(feature_B) == 0.0), OUTPUT_CODEC)
    return encode_feature(planned, feature_B, sender)
