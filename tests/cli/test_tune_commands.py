"""`tierline tune` and `tierline explain` from files: a front, a Bundle and Plan that run, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tuned
from exit_nets import digits

from tierline.cli.main import main
from tierline.cloud.hierarchy import load_file
from tierline.cloud.tuner.job import kept_in
from tierline.core.bundle import Bundle
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.plan import make_plan, parse_plan
from tierline.core.preprocess import Preprocessor

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Bundle, its hierarchy and a Profile."""
    folder = tmp_path_factory.mktemp("tuned")
    bundle = tuned.make_bundle(folder / "bundle")
    (folder / "hierarchy.toml").write_text(tuned.TOML.format(model="bundle"))
    (folder / "profile.json").write_bytes(tuned.profile_of(bundle, NOW).document())
    data = digits()
    np.savez(folder / "samples.npz", images=data.test.images[:120], labels=data.test.labels[:120])
    return folder


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


def tune(world: Path, *more: str) -> int:
    always = ["--profile", str(world / "profile.json"), "--max-age", "1e7", "--samples", str(world / "samples.npz")]
    return main(["tune", str(world / "hierarchy.toml"), *always, *more])


@pytest.fixture(scope="module")
def kept(world: Path) -> Path:
    """What `tune --out` wrote."""
    out = world / "out"
    if not out.exists():
        assert tune(world, "--out", str(out)) == 0
    return out


def test_front_choice_picture_and_baselines(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "front.svg"
    assert tune(world, "--format", "json", "--baselines", "--picture", str(picture)) == 0
    document = json.loads(capfd.readouterr().out)
    chosen = document["chosen"]["predicted"]
    assert chosen["quality_loss"] <= 0.02
    means = [point["predicted"]["latency_mean_ms"] for point in document["front"]]
    assert means == sorted(means)
    assert set(document["baselines"]) == {"device_only", "cloud_only", "neurosurgeon", "ddnn", "edgent", "spinn"}
    for found in document["baselines"].values():
        if "predicted" in found:
            assert chosen["latency_mean_ms"] <= found["predicted"]["latency_mean_ms"] + 1e-9
    cloud_only = document["baselines"]["cloud_only"]["choice"]
    assert cloud_only["cuts"] == {"device": "input", "cloud": "output"}
    assert cloud_only["codecs"] == {"device": "jpeg"}
    assert picture.read_text().startswith("<svg")


def test_bundle_and_plan_run_what_was_chosen(kept: Path) -> None:
    """The Sections that were joined answer as the exits' outcomes say, at the thresholds chosen."""
    job, proposal = kept_in(kept)
    bundle = Bundle.open(kept / "bundle")
    plan = parse_plan((kept / "plan.json").read_bytes(), "plan.json")
    assert plan.bundle == bundle.digest
    assert plan.valid["rtt_ms:device"][0] < 50 < plan.valid["rtt_ms:device"][1]
    assert f'tuned = "{kept}"' in (kept / "hierarchy.toml").read_text()
    assert plan.thresholds == proposal.chosen.choice.exits
    assert bundle.manifest.calibration is not None
    assert bundle.manifest.calibration.thresholds == plan.thresholds
    data = digits().validation
    images = Preprocessor(bundle.manifest.preprocess).many(data.images)
    exits, index = Oracle(bundle, engine_maker("onnxruntime")).answers(images[np.newaxis], plan.thresholds)
    shares = proposal.chosen.predicted.exit_share
    assert {name: exits.count(name) / len(exits) for name in shares} == pytest.approx(shares, abs=1e-6)
    right = float((index == data.labels).mean())
    assert proposal.quality - right == pytest.approx(proposal.chosen.predicted.quality_loss, abs=0.02)
    assert job.bundle.digest == bundle.digest


def test_explain_turns_every_knob(kept: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(kept), "--format", "json"]) == 0
    said = capfd.readouterr()
    rows = {row["knob"]: row for row in json.loads(said.out)}
    assert rows["as chosen"]["worse_by"] == 0
    assert all(row["worse_by"] >= 0 for row in rows.values())
    assert "cuts" in rows
    assert "up_mbps:device: nothing is better by more than 5 %" in said.err and "Mbit/s" in said.err


def test_what_if_changes_the_world(kept: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["explain", str(kept), "--what-if", "link=lan", "--what-if", "slower.device=50", "--format", "json"]
    assert main(argv) == 0
    before, after = json.loads(capfd.readouterr().out)
    assert before["choice"] != after["choice"]
    assert after["choice"].startswith("device..input")


@pytest.mark.parametrize(
    ("change", "words"),
    [("link=lite", 'nearest is "lte"'), ("slower.dev=2", '"device"'), ("max_quality_los=1", '"max_quality_loss"'),
     ("slower.device=fast", "write a number"), ("link", "KEY=VALUE")],
)  # fmt: skip
def test_what_if_of_nothing_is_refused(kept: Path, change: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(kept), "--what-if", change]) == 2
    assert words in capfd.readouterr().err


def test_why_a_sample_left(kept: Path, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, proposal = kept_in(kept)
    exits = proposal.chosen.choice.exits
    left = next(iter(exits), "final")
    record: dict[str, Any] = {
        "id": {"origin": "device", "epoch": 7, "seq": 3}, "view": "view-1", "label": "4", "index": 4,
        "confidence": 0.9, "exit": left, "degraded": False, "reason": "", "plan": 1, "total_ms": 12.5,
        "hops": [{"node": "device", "tier": "device", "residence_ms": 12.5, "spans_ms": {"section": 12.0}}],
    }  # fmt: skip
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps(record) + "\n")
    argv = ["explain", str(kept), "--answers", str(answers), "--samples", str(world / "samples.npz")]
    assert main([*argv, "--sample", "device/7/3"]) == 0
    assert f"{left!r}" in capfd.readouterr().out
    assert main([*argv, "--sample", "99"]) == 3
    assert "'99'" in capfd.readouterr().err


def test_a_goal_that_nothing_meets_names_the_nearest(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune(world, "--set", "goal.max_latency_p99_ms=0.001") == 5
    said = capfd.readouterr().err
    assert "nothing meets max_quality_loss = 0.02, max_latency_p99_ms = 0.001" in said
    limit = said.partition("with the other limits kept, max_latency_p99_ms = ")[2].partition(" ")[0]
    assert tune(world, "--set", f"goal.max_latency_p99_ms={limit}") == 0  # what it names is met


def test_stale_profiles_are_refused_by_name(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(world / "hierarchy.toml"), "--profile", str(world / "profile.json")]) == 5
    assert "stale profile: node 'cloud' was measured" in capfd.readouterr().err
    other = msgspec.structs.replace(tuned.profile_of(Bundle.open(world / "bundle")), bundle="0" * 64)
    (tmp_path / "other.json").write_bytes(other.document())
    assert main(["tune", str(world / "hierarchy.toml"), "--profile", str(tmp_path / "other.json")]) == 5
    assert "stale profile: it was measured for Bundle 000000000000" in capfd.readouterr().err


def test_flags_that_contradict_are_refused(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(world / "hierarchy.toml")]) == 2
    assert "--profile FILE or --from ADDRESS" in capfd.readouterr().err
    assert tune(world, "--codec", "affine:3") == 2
    assert "--codec affine:3: was not measured" in capfd.readouterr().err
    assert main(["explain", str(world)]) == 5
    assert "tierline tune --out" in capfd.readouterr().err


def test_precisions_of_a_profile_are_tried_and_run(world: Path, tmp_path: Path) -> None:
    """A device that is much faster in int8: the hierarchy written computes so."""
    profile = json.loads((world / "profile.json").read_text())
    for name, node in profile["nodes"].items():
        for kind in ("sections", "heads"):
            faster = [{**t, "precision": "int8", "p50_ns": t["p50_ns"] // 9} for t in node[kind]]
            node[kind] += faster if name == "device" else []
    (tmp_path / "lower.json").write_text(json.dumps(profile))
    tuned_args = ["tune", str(world / "hierarchy.toml"), "--max-age", "1e9", "--profile", str(tmp_path / "lower.json")]
    assert main([*tuned_args, "--precision", "int8", "--out", str(tmp_path / "out"), "--format", "json"]) == 0
    hierarchy = load_file(tmp_path / "out" / "hierarchy.toml").value.hierarchy()
    assert [(n.engine, n.precision) for n in hierarchy.nodes if n.id == "device"] == [("onnxruntime", "int8")]
    plan = parse_plan((tmp_path / "out" / "plan.json").read_bytes(), "plan.json")
    bundle = Bundle.open(tmp_path / "out" / "bundle")
    assert {n: p.precision for n, p in plan.nodes.items()} == {n.id: n.precision for n in hierarchy.nodes}
    for section in bundle.manifest.levels[0].sections.values():
        assert "int8" in section.precisions
    assert make_plan(hierarchy, bundle.manifest, bundle.digest, thresholds=plan.thresholds).nodes == plan.nodes
    assert main([*tuned_args, "--precision", "float16"]) == 2


def test_a_bundle_gets_precisions_and_tells_how_far_they_agree(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["model", "precision", str(world / "bundle"), "--precision", "int8", "--out", str(tmp_path / "lower")]
    assert main([*args, "--samples", str(world / "samples.npz"), "--format", "json"]) == 0
    exact, lower = json.loads(capsys.readouterr().out)
    assert (exact["precision"], exact["agreement final"], lower["precision"]) == ("float32", 1.0, "int8")
    assert 0.9 < lower["agreement final"] <= 1.0
    assert Bundle.open(tmp_path / "lower").manifest.levels[0].sections
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, images=np.zeros((3, 8, 8), np.float32))
    for more, words in (
        (["--samples", str(wrong)], "images are float32[3, 8, 8]; expected uint8"),
        (["--precision", "int4"], "no precision 'int4'; nearest is \"int8\""),
    ):
        assert main([*args[:-1], str(tmp_path / "none"), *more]) != 0
        assert words in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
