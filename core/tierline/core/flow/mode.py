"""`mode = auto`: do features travel with the outputs, or only when pulled? Whatever costs fewer bytes on the wire.

Per sample and view, with h the measured share of samples that the first exit could not answer:

    eager       the coded feature within the Part
    on_demand   h (Pull + Features), each a message of its own with its framing

Sizes are those of real messages, serialised once for this Bundle, this codec and one row.
"""

from __future__ import annotations

import numpy as np

from tierline.core.coding import codec_for
from tierline.core.flow.coding import encode_outputs
from tierline.core.flow.levels import LOGITS, LevelRunner
from tierline.core.link import messages as m
from tierline.core.types import NodeId, SampleId
from tierline.core.wire import FRAME_OVERHEAD_BYTES, frame_to_wire

LOOK_EVERY = 128
"""Samples between two decisions."""
MARGIN = 0.1
"""The other mode must save so much before it is taken, so that a share near the break-even does not flap."""


class ModeChooser:
    """Counts how samples leave; says when the other mode has become the cheaper one."""

    def __init__(self, runner: LevelRunner, codec: str, view: str) -> None:
        self.eager = False
        self.eager_bytes, self.pull_bytes = message_bytes(runner, codec, view)
        self._num_decided = self._num_hard = 0

    def decided(self, num_samples: int, num_hard: int) -> bool:
        """Count a batch of the first exit; whether `eager` has changed."""
        self._num_decided += num_samples
        self._num_hard += num_hard
        if self._num_decided < LOOK_EVERY:
            return False
        on_demand = self.pull_bytes * self._num_hard / self._num_decided
        self._num_decided = self._num_hard = 0
        if self.eager:
            changed = on_demand < (1.0 - MARGIN) * self.eager_bytes
        else:
            changed = self.eager_bytes < (1.0 - MARGIN) * on_demand
        self.eager ^= changed
        return changed


def message_bytes(runner: LevelRunner, codec: str, view: str) -> tuple[float, float]:
    """Bytes of one row: what a feature adds to a Part, and what pulling it costs."""
    assert runner.feature_spec is not None
    feature = codec_for(codec).encode(np.ones((1, *runner.feature_spec.shape), runner.feature_spec.dtype))
    outputs = {LOGITS: encode_outputs(np.zeros((1, *runner.logits_spec.shape), runner.logits_spec.dtype))}
    ids = (SampleId(NodeId(view), 1 << 50, 1 << 20),)

    def size(body: m.Body) -> int:
        return frame_to_wire(m.Frame(1 << 20, 1 << 20, body)).ByteSize() + FRAME_OVERHEAD_BYTES

    with_feature = size(m.Part(0, view, ids, 1, (1000.0,), outputs, feature))
    without = size(m.Part(0, view, ids, 1, (1000.0,), outputs))
    return with_feature - without, size(m.Pull(0, view, ids)) + size(m.Features(0, view, ids, feature))
