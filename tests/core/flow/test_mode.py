"""`mode = auto`: the cheaper way for features, framing counted, without flapping."""

from __future__ import annotations

from tierline.core.bundle import Bundle
from tierline.core.flow.levels import Levels, engine_maker
from tierline.core.flow.mode import LOOK_EVERY, ModeChooser


def chooser(bundle: Bundle) -> ModeChooser:
    levels = Levels(bundle, engine_maker("onnxruntime"), views={}, joins=True, runs=set())
    return ModeChooser(levels[0], bundle.manifest.levels[0].feature_codec, bundle.manifest.views[0])


def test_a_small_feature_is_sent_at_once_when_most_samples_are_hard(tiny_bundle: Bundle) -> None:
    mode = chooser(tiny_bundle)
    assert mode.eager_bytes < mode.pull_bytes
    assert not mode.eager
    assert mode.decided(LOOK_EVERY, LOOK_EVERY)
    assert mode.eager


def test_it_is_pulled_when_few_samples_need_it(tiny_bundle: Bundle) -> None:
    mode = chooser(tiny_bundle)
    mode.decided(LOOK_EVERY, LOOK_EVERY)
    assert mode.decided(LOOK_EVERY, 0)
    assert not mode.eager


def test_a_share_at_the_break_even_changes_nothing(tiny_bundle: Bundle) -> None:
    mode = chooser(tiny_bundle)
    share = mode.eager_bytes / mode.pull_bytes
    for _ in range(5):
        assert not mode.decided(1000, round(1000 * share))
    mode.decided(LOOK_EVERY, LOOK_EVERY)
    for _ in range(5):
        assert not mode.decided(1000, round(1000 * share))


def test_too_few_samples_decide_nothing(tiny_bundle: Bundle) -> None:
    mode = chooser(tiny_bundle)
    assert not mode.decided(LOOK_EVERY - 1, LOOK_EVERY - 1)
