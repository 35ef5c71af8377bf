"""What a junction does not take, and that nobody else is disturbed by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import ALWAYS_LEAVE, Bench, sample, told

from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.flow import junction as junction_module
from tierline.core.link import messages as m
from tierline.core.types import Payload


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"plan": 7}, "plan"),
        ({"name": "behind"}, "plan"),
        ({"level": 1}, "plan"),
        ({"level": 2}, "plan"),
        ({"level": 99}, "plan"),
        ({"outputs": {}}, "plan"),
        ({"outputs": {"logits": Payload("nonesuch", "float32", (1, 3), b"")}}, "unknown_codec"),
        ({"outputs": {"logits": Payload("raw", "float32", (1, 4), bytes(16))}}, "corrupt_payload"),
        ({"outputs": {"logits": Payload("raw", "float64", (1, 3), bytes(24))}}, "corrupt_payload"),
        ({"outputs": {"logits": Payload("raw", "float32", (1, 3), bytes(11))}}, "corrupt_payload"),
        ({"feature": Payload("bitplane", "float32", (1, 7), b"\0")}, "corrupt_payload"),
        ({"fused": True, "feature": None, "num_views": [1]}, "plan"),
        ({"fused": True, "feature": codec_for("raw").encode(np.ones((1, 18), np.float32)), "num_views": [1]}, "plan"),
    ],
)
def test_a_wrong_part_is_refused_and_disturbs_nobody(tiny_bundle: Bundle, changes: dict[str, Any], code: str) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("middle", 0, **changes)
    ((child, refused),) = bench.port.take_down(m.Refused)
    assert (child, refused.code, list(refused.ids)) == ("device-middle", code, [sample(0)])
    assert refused.message
    bench.step()
    bench.send("middle", 0)
    bench.send("right", 0)
    bench.step()
    assert told(bench) == {("local", "", 3)}


def test_a_codec_is_a_name_and_never_a_file(tiny_bundle: Bundle, tmp_path: Any) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send("left", 0, outputs={"logits": Payload(str(evil), "float32", (1, 3), bytes(12))})
    ((_, refused),) = bench.port.take_down(m.Refused)
    assert refused.code == "unknown_codec"
    assert not (tmp_path / "ran").exists(), "a peer's token ran a file"


def test_a_child_brings_only_its_own_views(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.flow.part("device-right", bench.part("left", 0), bench.clock.now_ns())
    ((child, refused),) = bench.port.take_down(m.Refused)
    assert (child, refused.code) == ("device-right", "plan")
    bench.send_all(0)
    bench.step()
    assert told(bench) == {("local", "", 3)}


def test_a_wrong_feature_counts_as_absent(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    pulls = bench.port.take_down(m.Pull)
    child, pull = pulls[0]
    bench.flow.features(child, m.Features(0, pull.name, pull.ids, Payload("bitplane", "float32", (1, 99), b"")))
    assert [body.code for _, body in bench.port.take_down(m.Refused)] == ["corrupt_payload"]
    bench.port.down.extend(pulls[1:])
    bench.answer_pulls()
    bench.step()
    assert told(bench) == {("edge", "", 3)}


def test_features_of_another_child_are_not_taken(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    feature = codec_for("bitplane").encode(np.ones((1, 6), np.float32))
    bench.flow.features("device-right", m.Features(0, "left", [sample(0)], feature))
    bench.flow.features("device-left", m.Features(0, "nonesuch", [sample(0)], feature))
    bench.flow.features("device-left", m.Features(0, "left", [sample(77)], feature))
    bench.step()
    assert bench.flow.num_open == 1 and not bench.port.up


def test_no_more_samples_than_the_bound(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junction_module, "MAX_OPEN", 2)
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send("left", 0, 1, 2)
    ((child, refused),) = bench.port.take_down(m.Refused)
    assert (child, refused.code, list(refused.ids)) == ("device-left", "admission", [sample(2)])
    bench.send("middle", 0, 1)
    bench.send("right", 0, 1)
    bench.step()
    assert set(bench.verdicts().values()) == {("local", "", 3)}
    bench.send_all(2)
    bench.step()
    assert len(bench.verdicts()) == 3, "there is room again"
