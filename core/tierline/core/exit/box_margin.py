"""Score a detector's image by its least clear box: `max_i (1 - |2 s_i - 1|)`, s_i the scores of its boxes.

Each box, after non-maximum suppression, asks one question of two answers, object or not; `|2 s - 1|` is the margin
between them (Scheffer, Decomain, Wrobel, IDA 2001), and the maximum over an image's boxes is one of the aggregations
of Brust, Kaeding, Denzler, "Active learning for deep object detection", VISAPP 2019.
An image without any candidate scores 0; candidates that are not finite score 1, so such a sample leaves at T >= 1 only.
Deviation: candidates below a score of 0.02 count as none. Status: reconstructed.
"""

from __future__ import annotations

import numpy as np

from tierline.core.boxes import SCORE, candidates_of, kept
from tierline.core.decide import bounded
from tierline.core.types import Array, Arrays

_FLOOR = 0.02


class BoxMargin:
    """Exit rule `box_margin`."""

    def score(self, outputs: Arrays) -> Array:
        return bounded(np.array([_doubt(rows_M6) for rows_M6 in candidates_of(outputs)], np.float32))


def _doubt(rows_M6: Array) -> float:
    if not np.isfinite(rows_M6).all():
        return 1.0
    score_N = kept(rows_M6, _FLOOR)[:, SCORE]
    return float((1 - np.abs(2 * score_N - 1)).max(initial=0.0))
