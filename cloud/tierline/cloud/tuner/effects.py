"""What a codec at a cut, or a precision below float32, does to the answers: measured by running the network so.

For every (cut, token): scores and answers of all exits for the calibration inputs with the feature at that cut coded
and decoded; exits at or below the cut are untouched. What a choice loses by a codec is the change in right answers on
those inputs under its own thresholds, so it counts the samples that really climb, which are the hard ones. Of
several lossy links the losses are added. A codec that was not measured and is not lossless has no effect that is
known: such a choice is left out, never guessed.

A precision below float32 is measured likewise, for every range of pieces that a node may compute in it, the rest of
the network in float32. Losses of several nodes, and of codecs, are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tierline.cloud.tuner.statistics import Statistics
from tierline.core.types import Array


@dataclass(frozen=True)
class Effects:
    """Measured on the first inputs of the calibration split, which are those of `plain`."""

    plain: Statistics | None = None
    """Without any codec, of the inputs that the effects were measured on."""
    coded: Mapping[tuple[str, str], Statistics] = field(default_factory=dict)
    """By (cut, token)."""
    lossless: frozenset[tuple[str, str]] = frozenset()
    """(cut, token) that give back what they were given."""
    computed: Mapping[tuple[str, str, str], Statistics] = field(default_factory=dict)
    """By (first, last, precision): with the pieces between two cuts, and the heads of exits above the first up to the
    last, computed in a precision below float32."""

    def knows(self, cut: str, token: str) -> bool:
        return (cut, token) in self.lossless or (cut, token) in self.coded

    def loss(self, cut: str, token: str, exits: Sequence[str], thresholds_GX: Array) -> Array:
        """Quality that the codec costs at each vector of thresholds; below zero where it happens to help."""
        if (cut, token) in self.lossless or self.plain is None:
            return np.zeros(len(thresholds_GX))
        _, plain_G = self.plain.outcome(exits, thresholds_GX)
        _, coded_G = self.coded[cut, token].outcome(exits, thresholds_GX)
        loss_G: Array = plain_G - coded_G
        return loss_G

    def tried(self, precision: str) -> bool:
        """Whether it is known what computing in this precision does."""
        return any(key[2] == precision for key in self.computed)

    def computed_loss(self, first: str, last: str, precision: str, exits: Sequence[str], thresholds_GX: Array) -> Array:
        """Quality that computing between two cuts in a precision costs at each vector of thresholds."""
        assert self.plain is not None
        _, plain_G = self.plain.outcome(exits, thresholds_GX)
        _, found_G = self.computed[first, last, precision].outcome(exits, thresholds_GX)
        loss_G: Array = plain_G - found_G
        return loss_G
