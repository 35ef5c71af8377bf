"""Candidate cuts and the outcomes of their exits, as a Bundle carries them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from trained import lenet_mnist

from tierline.core.bundle import Bundle, Candidates, Cut, Exit, Manifest, parse_manifest, write_bundle
from tierline.core.candidates import (
    Outcomes,
    candidates_of,
    cut_named,
    exit_cuts,
    joint,
    pack_outcomes,
    read_outcomes,
)
from tierline.core.errors import BundleError, DigestMismatch


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return lenet_mnist(tmp_path_factory.mktemp("lenet"))


def small() -> Outcomes:
    """Two exits, four samples."""
    score = np.array([[0.1, 0.5, 0.2, 1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    quality = np.array([[1, 0, 1, 0], [1, 1, 0, 1]], np.float32)
    agreement = np.array([[1, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    return Outcomes(("a", "b"), score, quality, agreement, np.arange(4), np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize(
    ("threshold", "share", "quality", "agreement"),
    [
        (0.0, 0.0, 0.75, 1.0),
        (0.2, 0.25, 0.75, 1.0),
        (0.3, 0.5, 1.0, 0.75),
        (0.6, 0.75, 0.75, 0.5),
        (1.0, 1.0, 0.5, 0.25),
    ],
)
def test_joint_statistics(threshold: float, share: float, quality: float, agreement: float) -> None:
    found = joint(small(), ["a", "b"], [threshold])
    assert found.exit_share == {"a": share, "b": 1.0 - share}
    assert (found.quality, found.agreement) == (quality, agreement)


def test_exits_can_be_left_out() -> None:
    assert joint(small(), ["b"], []).quality == 0.75 and joint(small(), ["a"], []).quality == 0.5
    with pytest.raises(BundleError, match="no exit 'c'; there are a, b"):
        joint(small(), ["c"], [])


def test_outcomes_come_back_and_equal_ones_are_equal_bytes(lenet: Bundle, tmp_path: Path) -> None:
    found = read_outcomes(lenet)
    raw = pack_outcomes(found)
    assert raw == pack_outcomes(read_outcomes(lenet)) == lenet.read("outcomes.npz")
    assert found.exits == ("max_pool2d", "final") and found.score_ES.shape == (2, 6000)
    assert found.quality_ES.mean(1) == pytest.approx([0.986167, 0.993333], abs=1e-6)
    assert found.images.shape == (64, 28, 28) and found.images.dtype == np.uint8
    calibration = lenet.manifest.calibration
    assert calibration is not None
    for point in calibration.curve:
        mine = joint(found, found.exits, list(point.thresholds.values()))
        assert mine.quality == pytest.approx(point.accuracy, abs=1e-6)
        assert mine.exit_share == pytest.approx(point.exit_share, abs=1e-6)


def test_pieces_meet_at_their_cuts(lenet: Bundle) -> None:
    candidates = candidates_of(lenet.manifest)
    for low, high in zip(candidates.cuts, candidates.cuts[1:], strict=False):
        assert high.piece is not None and list(high.piece.inputs.values()) == [low.tensor]
        assert list(high.piece.outputs.values()) == [high.tensor] and low.work_below <= high.work_below
    assert [cut.name for cut in exit_cuts(candidates)] == ["max_pool2d", "output"]
    assert candidates.cuts[cut_named(candidates, "relu_2")].name == "relu_2"
    with pytest.raises(BundleError, match="no cut 'relu_9'"):
        cut_named(candidates, "relu_9")


def test_a_bundle_with_one_fixed_cut_has_no_candidates(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="made with one fixed cut"):
        candidates_of(tiny_bundle.manifest)


def headless(cut: Cut) -> Cut:
    return msgspec.structs.replace(cut, exit=Exit("headless"))


def change(manifest: Manifest, edit: Callable[[list[Cut]], list[Cut]]) -> Manifest:
    old = candidates_of(manifest)
    return msgspec.structs.replace(manifest, candidates=Candidates(edit(list(old.cuts)), old.outcomes))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda cuts: cuts[1:], "must go from 'input' to 'output'"),
        (lambda cuts: cuts[:-1], "must go from 'input' to 'output'"),
        (lambda cuts: [cuts[0], cuts[-1], cuts[-1]], "same name"),
        (lambda cuts: [cuts[0], msgspec.structs.replace(cuts[1], piece=None), *cuts[2:]], "needs a piece"),
        (lambda cuts: [cuts[0], headless(cuts[1]), *cuts[2:]], "needs a head"),
    ],
)
def test_candidates_that_make_no_network(lenet: Bundle, edit: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        candidates_of(change(lenet.manifest, edit))


def test_a_candidate_exit_never_names_a_file(lenet: Bundle) -> None:
    raw = (lenet.folder / "bundle.json").read_bytes().replace(b'"rule": "entropy"', b'"rule": "/tmp/x.py"')
    with pytest.raises(BundleError, match="no name of an algorithm"):
        parse_manifest(raw, "here")


@pytest.mark.parametrize("what", ["exits", "score_ES", "garbage", "pickle"])
def test_outcomes_that_are_not_those_of_the_exits(lenet: Bundle, tmp_path: Path, what: str) -> None:
    with np.load(io.BytesIO(lenet.read("outcomes.npz"))) as arrays:
        changed = dict(arrays)
    if what == "exits":
        changed["exits"] = changed["exits"][::-1]
    elif what == "score_ES":
        changed["score_ES"] = changed["score_ES"][:, :-1]
    elif what == "pickle":
        changed["truth_S"] = np.array([object()])
    buffer = io.BytesIO()
    np.savez(buffer, **changed)
    raw = b"garbage" if what == "garbage" else buffer.getvalue()
    bundle = write_bundle(tmp_path, lenet.manifest, {"outcomes.npz": raw})
    with pytest.raises(BundleError, match="outcomes"):
        read_outcomes(bundle)


def test_outcomes_are_checked_against_their_digest(lenet: Bundle, tmp_path: Path) -> None:
    copy = Bundle(tmp_path, lenet.manifest, lenet.digest)
    (tmp_path / "outcomes.npz").write_bytes(b"other")
    with pytest.raises(DigestMismatch):
        read_outcomes(copy)
