"""A running hierarchy is measured and tuned, and the Bundle that comes out runs and answers."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tuned
from exit_nets import digits

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.main import main
from tierline.cli.supervisor import Fleet
from tierline.cli.trial.answers import Answers
from tierline.cloud.hierarchy import load_file
from tierline.cloud.tuner.job import kept_in
from tierline.core.bundle import Bundle
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.plan import Join
from tierline.core.preprocess import Preprocessor
from tierline.edge.config import SourceConfig

NUM = 40


@pytest.mark.slow
def test_tune_from_an_address_and_run_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "cache"))
    tuned.make_bundle(tmp_path / "bundle")
    (tmp_path / "hierarchy.toml").write_text(tuned.TOML.format(model="bundle"))
    out = tmp_path / "out"
    spec = FleetSpec(tuned.HIERARCHY, tmp_path / "bundle", join=Join(by="none"), access=True, link="rtt_ms=4,mbit=50")
    with Fleet(spec, tmp_path / "first") as fleet:
        argv = ["tune", str(tmp_path / "hierarchy.toml"), "--from", fleet.address("cloud"), "--out", str(out)]
        assert main([*argv, "--codec", "raw", "--codec", "affine:8", "--codec", "jpeg"]) == 0
    _, proposal = kept_in(out)
    assert 3.5 <= kept_in(out)[0].profile.links["device"].rtt_ms <= 60

    data = digits().test
    np.savez(tmp_path / "samples.npz", images=data.images[:NUM], labels=data.labels[:NUM])
    files = {"view-1": tmp_path / "answers.jsonl"}
    hierarchy = load_file(out / "hierarchy.toml").value.hierarchy()
    assert {node.id: (node.engine, node.precision) for node in hierarchy.nodes} == proposal.chosen.choice.engines
    second = FleetSpec(
        hierarchy,
        out / "bundle",
        join=Join(by="none"),
        sources=(SourceConfig("view-1", f"dataset:{tmp_path / 'samples.npz'}?loop=true", queue="all"),),
        sinks={"device": [f"jsonl:{files['view-1']}"]},
    )
    answers = Answers(files)
    with Fleet(second, tmp_path / "second"):
        until = time.monotonic() + 60
        while len(found := answers.samples("view-1", NUM, 1)) < NUM and time.monotonic() < until:
            time.sleep(0.1)
            answers.poll()
    assert len(found) == NUM
    bundle = Bundle.open(out / "bundle")
    x = Preprocessor(bundle.manifest.preprocess).many(data.images[:NUM])
    exits, index = Oracle(bundle, engine_maker("onnxruntime")).answers(x[np.newaxis], proposal.chosen.choice.exits)
    same = [found[n]["exit"] == exits[n] and found[n]["index"] == index[n] for n in range(NUM)]
    assert np.mean(same) >= 0.9  # codec and precisions chosen may turn a few; what they cost was measured
