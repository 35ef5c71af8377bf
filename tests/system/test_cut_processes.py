"""A user's plain network, cut and run by real processes: it answers as the uncut network does, every sample above."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_nets import make_images, make_network

from tierline.core import catalog
from tierline.core.bundle import Bundle
from tierline.core.decide import relative
from tierline.core.preprocess import Preprocessor
from tierline.models.captures import find_captures
from tierline.models.own import import_model, preprocess_of

CUTS = {"mlp": (1,), "lenet": (6,), "residual": (2, -2)}
"""Positions among a network's cut points, with two tensors at most."""


class Imported:
    """A Bundle cut from a network, its images, and what the uncut network says to them."""

    def __init__(self, folder: Path, name: str) -> None:
        network = make_network(name)
        images = make_images(folder / "images", name)
        points = network.cut_points(most=2)
        preprocess = preprocess_of(network, None, (0.4,), (0.3,))
        self.bundle: Bundle
        self.bundle, _ = import_model(
            network,
            find_captures(folder / "images", "classification", (0, 0)),
            folder / "bundle",
            name=name,
            preprocess=preprocess,
            cuts=[points[at].tensors for at in CUTS[name]],
        )
        self.samples = folder / "samples.npz"
        np.savez(self.samples, images=images, labels=np.repeat(np.arange(5), 4))
        raw = network.model.SerializeToString()
        engine = catalog.make("engine", "onnxruntime", model=raw, name=name, threads=1)
        logits_SK = engine.run({network.input: Preprocessor(preprocess).many(images)})[network.output]
        share_SK = np.exp(relative(logits_SK))
        self.index_S = logits_SK.argmax(1)
        self.confidence_S = (share_SK / share_SK.sum(1, keepdims=True)).max(1)


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_network_answers_as_the_uncut_one(start: Any, tmp_path: Path, name: str) -> None:
    own = Imported(tmp_path, name)
    hosts = ((own.bundle.manifest.views[0],),)
    with start(tmp_path / "run", hosts=hosts, bundle=own.bundle.folder, samples=own.samples, in_flight=4) as world:
        (records,) = world.until_answered(20).values()
    assert sorted(record["id"]["seq"] for record in records) == list(range(20))
    for record in records:
        sample = record["id"]["seq"]
        assert (record["exit"], record["degraded"], record["index"]) == ("cloud", False, own.index_S[sample])
        assert abs(record["confidence"] - own.confidence_S[sample]) < 1e-5
        assert [hop["tier"] for hop in record["hops"]] == ["device", "edge", "cloud"]
    accuracy = float((own.index_S == np.repeat(np.arange(5), 4)).mean())
    assert own.bundle.manifest.calibration and own.bundle.manifest.calibration.accuracy == {"cloud": accuracy}


def test_without_the_cloud_samples_end_unanswered_and_say_so(start: Any, tmp_path: Path) -> None:
    own = Imported(tmp_path, "residual")
    files = {"hosts": ((own.bundle.manifest.views[0],),), "bundle": own.bundle.folder, "samples": own.samples}
    with start(tmp_path / "run", query="?loop=true&rate=100", **files) as world:
        (device,) = world.files
        world.until_answered(5)
        world.fleet.kill("cloud")
        before = len(world.news(device))

        def ended() -> Any:
            return [record for record in world.news(device, before) if record["exit"] == "none"]

        lost = world.until("samples end at the edge node", ended)
        world.fleet.restart("cloud")
        before = len(world.news(device))
        world.until("the cloud answers again", lambda: any(r["exit"] == "cloud" for r in world.news(device, before)))
    assert all(record["degraded"] and record["reason"] for record in lost)
    assert {(record["index"], record["label"], record["confidence"]) for record in lost} == {(-1, "", 0.0)}
