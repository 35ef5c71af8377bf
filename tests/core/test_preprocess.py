from __future__ import annotations

import sys

import numpy as np
import pytest

from tierline.core.bundle import Preprocess
from tierline.core.errors import BundleError, MissingDependency, ShapeMismatch
from tierline.core.preprocess import Preprocessor

GREY = Preprocess(size=(4, 6), channels=1, mean=(0.5,), std=(0.25,), grid=(2, 3))
COLOUR = Preprocess(size=(4, 4), channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_scales_and_normalises_per_channel() -> None:
    image = images(4, 4, 3)
    expected = (image.astype(np.float64) / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 0.2]
    result = Preprocessor(COLOUR)(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-6)


def test_patches_are_row_major() -> None:
    image = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 2, 0), 2, 1)
    preprocessor = Preprocessor(GREY)
    for index in range(6):
        patch = preprocessor(image, index)
        assert patch.shape == preprocessor.output.shape == (1, 2, 2)
        np.testing.assert_allclose(patch, (index / 255.0 - 0.5) / 0.25, atol=1e-6)


def test_batch_and_all_views_equal_single_images() -> None:
    raw, preprocessor = images(5, 9, 7), Preprocessor(GREY)
    views = preprocessor.views(raw)
    assert views.shape == (6, 5, 1, 2, 2)
    for index in range(6):
        np.testing.assert_array_equal(views[index], preprocessor.many(raw, index))
        np.testing.assert_array_equal(views[index, 3], preprocessor(raw[3], index))


def test_resizes_other_sizes_smoothly() -> None:
    flat = np.full((31, 17, 3), 77, np.uint8)
    expected = (77 / 255.0 - np.array([0.1, 0.2, 0.3])) / [0.5, 0.25, 0.2]
    np.testing.assert_allclose(Preprocessor(COLOUR)(flat)[:, 2, 1], expected, atol=1e-6)
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (8, 1))
    row = Preprocessor(Preprocess(size=(4, 8), channels=1, mean=(0.0,), std=(1.0,)))(ramp)[0, 0]
    assert (np.diff(row) > 0.05).all()


def test_colour_conversion() -> None:
    red, grey = np.zeros((4, 6, 3), np.uint8), images(4, 4)
    red[..., 0] = 255
    whole = Preprocess(size=(4, 6), channels=1, mean=(0.0,), std=(1.0,))
    np.testing.assert_allclose(Preprocessor(whole)(red), 76 / 255.0, atol=1e-6)  # 0.299 * 255, rounded
    red[..., 0] = 5
    np.testing.assert_allclose(Preprocessor(whole)(red), 1 / 255.0, atol=1e-6)  # 1.495, rounded
    red[..., 0] = 6
    np.testing.assert_allclose(Preprocessor(whole)(red), 2 / 255.0, atol=1e-6)  # 1.794, rounded
    colour = Preprocessor(COLOUR)
    np.testing.assert_array_equal(colour(grey), colour(np.stack([grey] * 3, axis=-1)))
    opaque = np.concatenate([images(4, 4, 3), np.zeros((4, 4, 1), np.uint8)], axis=-1)
    np.testing.assert_array_equal(colour(opaque), colour(opaque[..., :3]))


@pytest.mark.parametrize(
    "bad",
    [
        images(4),
        images(1, 4, 6, 3),
        images(4, 6).astype(np.float32),
        images(4, 6, 2),
        images(0, 6),
    ],
)
def test_refuses_other_images(bad: np.ndarray) -> None:
    with pytest.raises(ShapeMismatch, match="image"):
        Preprocessor(GREY)(bad)


def test_refuses_a_view_outside_the_grid() -> None:
    with pytest.raises(ShapeMismatch, match="0 to 5"):
        Preprocessor(GREY)(images(4, 6), 6)


@pytest.mark.parametrize(
    "spec",
    [
        Preprocess(size=(4, 7), channels=1, mean=(0.0,), std=(1.0,), grid=(2, 3)),
        Preprocess(size=(4, 6), channels=3, mean=(0.0,), std=(1.0,)),
        Preprocess(size=(4, 6), channels=1, mean=(0.0,), std=(0.0,)),
    ],
)
def test_refuses_a_contradictory_specification(spec: Preprocess) -> None:
    with pytest.raises(BundleError, match="preprocess"):
        Preprocessor(spec)


def test_needs_pillow_only_to_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert Preprocessor(GREY)(images(4, 6), 2).shape == (1, 2, 2)
    with pytest.raises(MissingDependency, match="pip install pillow"):
        Preprocessor(GREY)(images(5, 6), 2)
