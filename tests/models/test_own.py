"""A Bundle from a network of one's own: what it holds, what the automatic cut chooses, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_detectors import linear_network, write_images
from own_nets import SHAPES, make_images, make_network, make_onnx

from tierline.cli.main import main
from tierline.core import catalog
from tierline.core.bundle import Bundle, Exit
from tierline.core.errors import BundleError, ConfigError
from tierline.core.flow.levels import LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Tier
from tierline.models.captures import find_captures
from tierline.models.graph import Network
from tierline.models.own import Meaning, World, cost_graph, cut_for, import_model, preprocess_of


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {name: make_network(name) for name in SHAPES}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`NAME.onnx` and a folder `NAME` of images each."""
    home = tmp_path_factory.mktemp("own")
    for name in SHAPES:
        make_images(home / name, name)
        (home / f"{name}.onnx").write_bytes(make_onnx(name))
    return home


@pytest.mark.parametrize("name", SHAPES)
def test_one_process_runs_the_sections_as_the_whole(
    networks: dict[str, Network], home: Path, tmp_path: Path, name: str
) -> None:
    network = networks[name]
    captures = find_captures(home / name, "classification", (0, 0))
    points = network.cut_points(most=2)
    preprocess = preprocess_of(network, None, (0.5,), (0.25,))
    cuts = [points[1].tensors, points[-1].tensors]
    bundle, judged = import_model(network, captures, tmp_path, name=name, preprocess=preprocess, cuts=cuts)
    assert [level.tier for level in bundle.manifest.levels] == [Tier.DEVICE, Tier.EDGE, Tier.CLOUD]
    assert bundle.manifest.exits() == ["cloud"] and bundle.manifest.labels == [f"c{i}" for i in range(5)]
    images = np.stack([Preprocessor(preprocess)(image) for image in (x.image for x in captures)])
    raw = network.model.SerializeToString()
    engine = catalog.make("engine", "onnxruntime", model=raw, name=name, threads=1)
    whole = engine.run({network.input: images})[network.output]
    for kind in ("onnxruntime", "reference"):
        found = Oracle(Bundle.open(tmp_path), engine_maker(kind)).exits(images[np.newaxis])
        assert list(found.outputs) == ["cloud"] and found.device_logits_NBK is None
        assert np.abs(found.outputs["cloud"][LOGITS] - whole).max() < 1e-5
    assert judged.num_samples == 20 and judged.truths is not None and judged.truths[0] == "c0"
    calibration = bundle.manifest.calibration
    assert calibration and calibration.num_samples == 20 and calibration.thresholds == {}
    assert calibration.accuracy == {"cloud": float((whole.argmax(1) == np.repeat(np.arange(5), 4)).mean())}
    (point,) = calibration.curve
    assert point.bytes_per_sample == {"device": points[1].num_bytes, "edge": points[-1].num_bytes}


@pytest.mark.parametrize(
    ("world", "tiers"),
    [
        (World((100.0, 1.0), (1e9,)), ["device", "cloud"]),
        (World((1.0, 1.0), (0.001,)), ["device"]),
        (World((1000.0, 1.0, 100.0), (1e9, 1e-6)), ["device", "edge"]),
        (World((1000.0, 900.0, 1.0), (1e9, 1e9)), ["device", "cloud"]),
    ],
    ids=["fast link", "slow link", "fast edge", "useless edge"],
)
def test_the_automatic_cut_follows_the_world(networks: dict[str, Network], world: World, tiers: list[str]) -> None:
    sections, found, told = cut_for(networks["lenet"], world)
    assert [tier.value for tier in found] == tiers and len(sections) == len(tiers)
    assert "min_cut" in told
    if len(tiers) > 1:  # a slow device keeps nothing but the image
        assert sections[0].section.outputs["feature"] == sections[0].section.inputs["image"]


def test_the_cut_climbs_as_the_link_gets_slower(networks: dict[str, Network]) -> None:
    network, below = networks["residual"], []
    for mbit in (1e6, 10.0, 1.0, 0.1, 0.01, 0.0001):
        graph = cost_graph(network, World((10.0, 1.0), (mbit,)), 0.001)
        below.append(catalog.make("cut", "min_cut").place(graph).count(0))
    assert below == sorted(below) and below[0] == 0 and below[-1] == len(network.nodes)


def test_what_does_not_fit_is_refused(networks: dict[str, Network], home: Path, tmp_path: Path) -> None:
    network, captures = networks["lenet"], find_captures(home / "lenet", "classification", (28, 28))
    preprocess = preprocess_of(network, (28, 28), (0.5,), (0.5,))

    def attempt(**changes: Any) -> None:
        import_model(network, captures, tmp_path, **{"name": "x", "preprocess": preprocess, **changes})

    with pytest.raises(BundleError, match=r"its output is \(batch, 5\), there are 2 labels \(a, b"):
        attempt(meaning=Meaning(labels=["a", "b"]))
    with pytest.raises(ConfigError, match="the folder 'c0' is none of them"):
        attempt(meaning=Meaning(labels=list("abcde")))
    with pytest.raises(ConfigError, match="3 cuts; there are links for two"):
        attempt(cuts=[point.tensors for point in network.cut_points()[1:4]])
    with pytest.raises(ConfigError, match="--mbit: 2 links for 2 tiers"):
        attempt(cuts=World((1.0, 1.0), (1.0, 1.0)))
    with pytest.raises(ConfigError, match="takes 28x28"):
        preprocess_of(network, (32, 32), (0.5,), (0.5,))
    with pytest.raises(ConfigError, match="--std: 3 values for 1 channels"):
        preprocess_of(network, None, (0.5,), (0.5, 0.5, 0.5))


def test_numbers_are_judged_by_their_table_and_images_without_classes_by_none(tmp_path: Path) -> None:
    pixels, network = write_images(tmp_path, 6), linear_network((2,))
    preprocess = preprocess_of(network, None, (0.5,), (1.0,))
    raw = catalog.make("engine", "onnxruntime", model=network.model.SerializeToString(), name="x", threads=1)
    rows = raw.run({"image": Preprocessor(preprocess).many(pixels)})["out"]
    (tmp_path / "values.csv").write_text(
        "file,speed\n" + "".join(f"{index:03}.png,{row[0]}\n" for index, row in enumerate(rows.tolist()))
    )
    options: dict[str, Any] = {"name": "own", "preprocess": preprocess, "cuts": [("relu",)]}
    captures = find_captures(tmp_path, "regression", (8, 8))
    bundle, judged = import_model(network, captures, tmp_path / "numbers", meaning=Meaning("regression"), **options)
    assert bundle.manifest.labels == ["speed"] and bundle.manifest.levels[-1].exit == Exit("cloud", rule="spread")
    assert bundle.manifest.origin["measure"] == "r2" and judged.quality() == {"cloud": pytest.approx(1.0)}
    assert judged.answers["cloud"][0].values == (pytest.approx(rows[0, 0], abs=1e-5),)
    flat = find_captures(tmp_path, "classification", (8, 8), most=4)
    bundle, judged = import_model(network, flat, tmp_path / "flat", meaning=Meaning(labels=["a", "b"]), **options)
    assert judged.truths is None and judged.num_samples == 4
    assert bundle.manifest.origin["measure"] == "agreement with the last exit"
    with pytest.raises(BundleError, match=r"its output is \(batch, 2\), there are 0 labels"):
        import_model(network, flat, tmp_path / "bad", **options)


def test_commands(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(["model", "cuts", "lenet.onnx", "--format", "json"]) == 0
    points = json.loads(capsys.readouterr().out)
    assert points[0] == {"cut": "image", "shape": "1x28x28", "bytes": 3136, "work_below": 0.0}
    middle = points[5]["cut"]
    arguments = ["model", "import", "lenet.onnx", "--data", "lenet", "--mean", "0.4", "--format", "json"]
    assert main([*arguments, "--out", str(tmp_path / "two"), "--cut", middle, "--codec", "float16"]) == 0
    out, err = capsys.readouterr()
    assert [row["tier"] for row in json.loads(out)] == [
        "device",
        "cloud",
    ] and "accuracy on 20 images, each exit" in err
    manifest = Bundle.open(tmp_path / "two").manifest
    assert manifest.levels[0].exit is None and manifest.levels[0].feature_codec == "float16"
    assert manifest.preprocess.mean == (0.4,) and manifest.preprocess.std == (1.0,)
    assert manifest.origin["cut"] == middle
    labels = ",".join(f"c{i}" for i in (4, 3, 2, 1, 0))
    assert main([*arguments, "--out", str(tmp_path / "one"), "--labels", labels]) == 0
    assert Bundle.open(tmp_path / "one").manifest.labels[0] == "c4"
    capsys.readouterr()
    for more, code, says in (
        (["--task", "detection"], 2, "--labels: name the classes"),
        (["--task", "detection", "--labels", "a,b"], 4, "a detector of 2 labels gives (batch, 6, N)"),
        (["--task", "regression", "--labels", "a,b"], 4, "its output is (batch, 5), there are 2 labels"),
        (["--cut", "nix"], 4, "no tensor 'nix' to cut at"),
        (["--cut", "auto", "--cut", middle], 2, "--cut auto: chooses all cuts"),
        (["--mean", "a"], 2, "--mean a: write numbers"),
        (["--size", "28"], 2, "--size 28: write height x width"),
        (["--codec", "rew"], 6, "raw"),
        (["--data", "nowhere"], 3, "nowhere: no such folder or file"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "bad"), *more]) == code, more
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
        assert not (tmp_path / "bad").exists()
