"""Codecs tried on calibration images, and the image itself across the cut at the input."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tuned
from exit_nets import digits

from tierline.cloud.tuner.apply import plan_of, write_choice
from tierline.cloud.tuner.choice import Choice
from tierline.cloud.tuner.tryout import Tryout, measure_effects, read_effects, scores_of, write_effects
from tierline.core.bundle import Bundle
from tierline.core.candidates import read_outcomes
from tierline.core.coding import codec_for
from tierline.core.flow.levels import FEATURE, LOGITS, Levels, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.types import TensorSpec, Tier


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tuned.make_bundle(tmp_path_factory.mktemp("tryout"))


def test_a_codec_costs_what_decoded_features_get_wrong(bundle: Bundle, tmp_path: Path) -> None:
    """Against the Sections of the same cut, run by hand with the feature coded between them."""
    data = digits().test
    tryout = Tryout(bundle, data.images, data.labels)
    found = tryout.coded("max_pool2d", "affine:2")
    tryout.close()
    assert found is not None
    choice = Choice({Tier.DEVICE: "max_pool2d", Tier.CLOUD: "output"}, {"max_pool2d": 0.1}, {}, {Tier.DEVICE: "raw"})
    cut = write_choice(bundle, choice, tmp_path / "cut")
    levels = Oracle(cut, engine_maker("onnxruntime")).levels
    parts = levels[0].run(levels[0].parts[0], Preprocessor(bundle.manifest.preprocess).many(data.images))
    codec, spec = codec_for("affine:2"), TensorSpec("float32", parts[FEATURE].shape[1:])
    rows = [codec.decode(codec.encode(row[np.newaxis]), spec)[0] for row in parts[FEATURE]]
    index = levels[1].run("*", np.stack(rows))[LOGITS].argmax(axis=1)
    right = (index == data.labels).astype(np.float32)
    np.testing.assert_array_equal(found.quality_ES[-1], right)
    np.testing.assert_array_equal(found.score_ES[0], tryout.plain.score_ES[0])  # the exit at the cut sees it uncoded
    assert right.mean() < tryout.plain.quality_ES[-1].mean()


def test_lossless_codecs_have_no_effect_and_foreign_ones_none_known(bundle: Bundle, tmp_path: Path) -> None:
    effects = measure_effects(bundle, ["raw", "jpeg", "affine:4"], keep=tmp_path)
    cuts = ["input", "max_pool2d", "relu_1"]
    assert effects.lossless >= {(cut, "raw") for cut in cuts}
    assert effects.knows("input", "jpeg")
    assert not effects.knows("relu_1", "jpeg")
    assert not effects.knows("relu_1", "affine:3")
    thresholds = np.array([[0.3], [1.0]])
    assert (effects.loss("relu_1", "raw", ["max_pool2d"], thresholds) == 0).all()
    assert effects.loss("relu_1", "affine:4", ["max_pool2d"], thresholds)[1] == 0  # nothing climbs
    write_effects(tmp_path / "again.npz", effects)
    again = read_effects(tmp_path / "again.npz", read_outcomes(bundle))
    assert again.lossless == effects.lossless
    assert list(again.coded) == list(effects.coded)
    for key, coded in effects.coded.items():
        np.testing.assert_array_equal(again.coded[key].outcomes.score_ES, coded.outcomes.score_ES)
    assert len(list(tmp_path.glob("effects-*.npz"))) == 1


def test_a_precision_costs_what_sections_in_it_get_wrong(bundle: Bundle, tmp_path: Path) -> None:
    """Against the Bundle of the same cut, whose device computes in int8 and whose cloud in float32."""
    data = digits().test
    effects = measure_effects(bundle, ["raw"], precisions=["float32", "int8"], images=data.images, truths=data.labels)
    assert effects.computed.keys() == {
        (a, b, "int8") for a, b in combinations(["input", "max_pool2d", "relu_1", "output"], 2)
    }
    choice = Choice(
        {Tier.DEVICE: "relu_1", Tier.CLOUD: "output"},
        {"max_pool2d": 0.1},
        {"device": ("onnxruntime", "int8"), "cloud": ("onnxruntime", "float32")},
        {Tier.DEVICE: "raw"},
    )
    cut = write_choice(bundle, choice, tmp_path / "cut")
    make = engine_maker("onnxruntime")
    lower = Levels(cut, make, views={"view-0": "view-0"}, joins=True, runs={1}, precision="int8")
    exact = Levels(cut, make, views={}, joins=False, runs={2})
    first = lower[0].run(lower[0].parts[0], Preprocessor(bundle.manifest.preprocess).many(data.images))
    second = lower[1].run("*", first[FEATURE])
    last = exact[2].run("*", second[FEATURE])
    found = effects.computed["input", "relu_1", "int8"].outcomes
    np.testing.assert_array_equal(found.quality_ES[0], first[LOGITS].argmax(axis=1) == data.labels)
    np.testing.assert_array_equal(found.quality_ES[-1], last[LOGITS].argmax(axis=1) == data.labels)
    assert effects.plain is not None
    assert (found.score_ES != effects.plain.outcomes.score_ES).any(axis=1).all()
    only_last = effects.computed["relu_1", "output", "int8"].outcomes
    np.testing.assert_array_equal(only_last.score_ES[0], effects.plain.outcomes.score_ES[0])
    write_effects(tmp_path / "effects.npz", effects)
    again = read_effects(tmp_path / "effects.npz", read_outcomes(bundle))
    assert list(again.computed) == list(effects.computed)
    thresholds = np.array([[0.1], [1.0]])
    for key in effects.computed:
        np.testing.assert_array_equal(
            again.computed_loss(*key, ["max_pool2d"], thresholds),
            effects.computed_loss(*key, ["max_pool2d"], thresholds),
        )


def test_a_plan_carries_engines_and_precisions_to_the_nodes(bundle: Bundle, tmp_path: Path) -> None:
    choice = Choice(
        {Tier.DEVICE: "max_pool2d", Tier.CLOUD: "output"},
        {"max_pool2d": 0.1},
        {"device": ("tensorrt", "int8"), "cloud": ("onnxruntime", "float16")},
        {Tier.DEVICE: "raw"},
    )
    made = write_choice(bundle, choice, tmp_path / "cut")
    plan = plan_of(made, choice, tuned.HIERARCHY)
    assert {name: (p.engine, p.precision) for name, p in plan.nodes.items()} == choice.engines
    for level in made.manifest.levels:
        for section in level.sections.values():
            assert section.precisions.keys() == {"float16", "int8"}


def test_scores_of_one_image_are_those_of_the_batch(bundle: Bundle) -> None:
    data = digits().validation
    outcomes = read_outcomes(bundle)
    scores = scores_of(bundle, data.images[5], int(data.labels[5]))
    assert list(scores) == list(outcomes.exits)
    assert list(scores.values()) == pytest.approx(outcomes.score_ES[:, 5].tolist(), abs=1e-5)


def test_pixels_cross_the_cut_at_the_input(bundle: Bundle, tmp_path: Path) -> None:
    """Below, the very pixels come out; above, they give the network's own answers."""
    data = digits().test
    choice = Choice({Tier.DEVICE: "input", Tier.CLOUD: "output"}, {"max_pool2d": 0.2}, {}, {Tier.DEVICE: "jpeg"})
    cut = write_choice(bundle, choice, tmp_path / "cut")
    device = cut.manifest.levels[0]
    assert device.tier is Tier.DEVICE
    assert device.feature_codec == "jpeg"
    oracle = Oracle(cut, engine_maker("onnxruntime"))
    preprocessor = Preprocessor(bundle.manifest.preprocess)
    x = preprocessor.many(data.images)
    sent = oracle.levels[0].run(oracle.levels[0].parts[0], x)[FEATURE]
    assert sent.dtype == np.uint8
    np.testing.assert_array_equal(sent, preprocessor.pixels(x))
    np.testing.assert_array_equal(preprocessor.normalise(sent), x)
    whole = Tryout(bundle, data.images, data.labels)
    exits = oracle.exits(x[np.newaxis])
    np.testing.assert_allclose(exits.scores["max_pool2d"], whole.plain.score_ES[0], atol=1e-5)
    np.testing.assert_array_equal(
        exits.outputs["final"][LOGITS].argmax(axis=1) == data.labels, whole.plain.quality_ES[-1]
    )
