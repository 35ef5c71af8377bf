"""What a tuner can choose from in a Bundle: its candidate cuts, and what each exit said to each calibration sample.

`manifest.candidates.cuts` go from `input` to `output`. Any chain of cuts makes Sections: the one from cut a to a higher
cut b is the pieces of all cuts above a up to b, run one after the other; `models.exits.derive.derive` joins them into
one ONNX file each and writes the Bundle. `joint` gives the statistics of any choice of exits and thresholds.

The file of outcomes is an `.npz`; its arrays have the names of the fields of `Outcomes`. Its digest is in the manifest.
Shapes: E exits, S samples of the validation split, R of them with their images.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tierline.core.bundle import Bundle, Candidates, Cut, Manifest
from tierline.core.decide import leaves
from tierline.core.errors import BundleError
from tierline.core.types import Array

INPUT, OUTPUT = "input", "output"
"""The first and the last cut."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What every candidate exit says to every sample of the validation split, each asked alone."""

    exits: tuple[str, ...]
    """Names from the input upwards; the last is the whole network."""
    score_ES: Array
    """float32, by the exit's rule: a sample leaves at T >= 1 or score < T."""
    quality_ES: Array
    """float32 in [0, 1] against truth; of a classification 1 where it is right, else 0."""
    agreement_ES: Array
    """float32 in [0, 1] with the whole network's answer; for data without truth."""
    truth_S: Array
    """int64: the class, -1 where a truth is no class."""
    images: Array
    """uint8 (R, H, W) or (R, H, W, C): the first samples as a source gives them, to measure codecs on."""

    def of(self, exit_: str) -> int:
        """Row of an exit. Raises BundleError."""
        if exit_ not in self.exits:
            raise BundleError(f"outcomes: no exit {exit_!r}; there are {', '.join(self.exits)}")
        return self.exits.index(exit_)


def candidates_of(manifest: Manifest) -> Candidates:
    """Those of a Bundle, checked. Raises BundleError where it has none or they make no network."""
    if manifest.candidates is None:
        raise BundleError(
            f"Bundle {manifest.name!r}: was made with one fixed cut; `tierline model exits` makes one with candidates"
        )
    _check(manifest.candidates, f"Bundle {manifest.name!r}")
    return manifest.candidates


def cut_named(candidates: Candidates, name: str) -> int:
    """Position of a cut. Raises BundleError."""
    names = [cut.name for cut in candidates.cuts]
    if name not in names:
        raise BundleError(f"candidates: no cut {name!r}; there are {', '.join(names)}")
    return names.index(name)


def exit_cuts(candidates: Candidates) -> list[Cut]:
    """The cuts with an exit, from the input upwards; the last is the network's end."""
    return [cut for cut in candidates.cuts if cut.exit is not None]


def read_outcomes(bundle: Bundle) -> Outcomes:
    """Read and check the outcomes of a Bundle. Raises BundleError."""
    candidates = candidates_of(bundle.manifest)
    where = f"{bundle.folder / candidates.outcomes}"
    try:
        with np.load(io.BytesIO(bundle.read(candidates.outcomes)), allow_pickle=False) as arrays:
            found = Outcomes(
                tuple(str(name) for name in arrays["exits"]),
                *(arrays[name] for name in ("score_ES", "quality_ES", "agreement_ES", "truth_S", "images")),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{where}: holds no outcomes of exits ({error})") from error
    expected = tuple(cut.exit.name for cut in candidates.cuts if cut.exit is not None)
    shape = (len(expected), len(found.truth_S))
    if found.exits != expected or {found.score_ES.shape, found.quality_ES.shape, found.agreement_ES.shape} != {shape}:
        raise BundleError(f"{where}: its arrays are not those of the exits {', '.join(expected)}")
    return found


def pack_outcomes(outcomes: Outcomes) -> bytes:
    """Content of the file; equal outcomes give equal bytes."""
    arrays: dict[str, Array] = {
        "exits": np.array(outcomes.exits),
        "score_ES": outcomes.score_ES,
        "quality_ES": outcomes.quality_ES,
        "agreement_ES": outcomes.agreement_ES,
        "truth_S": outcomes.truth_S,
        "images": outcomes.images,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Joint:
    """What thresholds make of the calibration samples."""

    quality: float
    agreement: float
    exit_share: dict[str, float]
    """By exit taken part, in order; sums to 1."""


def joint(outcomes: Outcomes, exits: Sequence[str], thresholds: Sequence[float]) -> Joint:
    """Let samples leave at the first of `exits` with T >= 1 or score < T; the last of `exits` takes the rest.

    `exits` are some of the candidates from the input upwards; `thresholds` are for all of them but the last. Exact over
    the calibration samples, since an exit's answer to a sample does not depend on the other exits.
    """
    assert len(thresholds) == len(exits) - 1
    waiting_S = np.ones(outcomes.score_ES.shape[1], bool)
    quality_S, agreement_S = np.zeros((2, len(waiting_S)))
    share = {}
    for name, threshold in zip(exits, [*thresholds, 1.0], strict=True):
        row = outcomes.of(name)
        here_S = waiting_S & leaves(outcomes.score_ES[row], threshold)
        quality_S[here_S] = outcomes.quality_ES[row][here_S]
        agreement_S[here_S] = outcomes.agreement_ES[row][here_S]
        share[name] = float(here_S.mean())
        waiting_S &= ~here_S
    return Joint(float(quality_S.mean()), float(agreement_S.mean()), share)


def _check(candidates: Candidates, where: str) -> None:
    cuts = candidates.cuts
    names = [cut.name for cut in cuts]
    exits = [cut.exit.name for cut in cuts if cut.exit is not None]
    if len(cuts) < 2 or names[0] != INPUT or names[-1] != OUTPUT or cuts[-1].exit is None:
        raise BundleError(f"{where}: candidate cuts must go from {INPUT!r} to {OUTPUT!r}, which ends in an exit")
    if len(set(names)) < len(names) or len(set(exits)) < len(exits):
        raise BundleError(f"{where}: two candidate cuts or exits have the same name")
    if cuts[0].piece is not None or cuts[0].exit is not None or any(cut.piece is None for cut in cuts[1:]):
        raise BundleError(f"{where}: every candidate cut but {INPUT!r} needs a piece")
    if any(cut.exit is not None and cut.exit.head is None for cut in cuts[:-1]):
        raise BundleError(f"{where}: a candidate exit below {OUTPUT!r} needs a head")
