"""`tierline model exits`, `derive`, `bottleneck`, `zoo`: from a command to a Bundle, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_nets import make_images, make_onnx
from trained import lenet_mnist

from tierline.cli.main import main
from tierline.core.bundle import Bundle
from tierline.core.candidates import read_outcomes
from tierline.core.types import Tier
from tierline.models.exits.trained import Recipe, load_trained, names, save_trained, zoo_net


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`net.onnx`, a residual network, and `photos` for it; the Bundle `lenet`."""
    home = tmp_path_factory.mktemp("split")
    make_images(home / "photos", "residual", each=8)
    (home / "net.onnx").write_bytes(make_onnx("residual"))
    lenet_mnist(home / "lenet")
    return home


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_a_file_to_exits_and_other_levels(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model", "exits", str(home / "net.onnx"), "--data", str(home / "photos"), "--out", str(tmp_path / "a")]
    rows = run(capsys, *command, "--exit", "relu_1", "--head", "linear", "--mean", "0.5", "--std", "0.25",
               "--set", "training.epochs=1", "--set", "training.batch_size=8")  # fmt: skip
    assert [row["cut"] for row in rows] == ["input", "conv2d", "relu_1", "relu_3", "mean", "output"]
    assert [row["exit"] for row in rows] == ["", "", "relu_1", "", "", "final"]
    assert rows[0]["bytes"] == 3 * 8 * 8 * 4 and rows[-1]["work_below"] == 1.0
    bundle = Bundle.open(tmp_path / "a")
    assert [level.tier for level in bundle.manifest.levels] == [Tier.DEVICE, Tier.CLOUD]
    assert rows[2]["validation"] == round(float(read_outcomes(bundle).quality_ES[0].mean()), 4)
    assert bundle.manifest.origin["train"] == "frozen"
    command = ["model", "derive", str(tmp_path / "a"), "--level", "relu_1=device", "--level", "mean=device"]
    rows = run(capsys, *command, "--level", "output=cloud", "--exit", "relu_1", "--out", str(tmp_path / "b"))
    assert [(row["tier"], row["exit"]) for row in rows] == [("device", "relu_1"), ("device", ""), ("cloud", "final")]
    again = Bundle.open(tmp_path / "b")
    for file in again.manifest.files:
        again.read(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["exits", "resnet20", "--data", "digits"], "its weights are new; give --train joint"),
        (["exits", "resnet21", "--data", "digits"], "neither a file nor in the zoo; nearest is \"resnet20\""),
        (["exits", "{home}/net.onnx", "--data", "{home}/photos", "--train", "joint"], "needs a torch module"),
        (["exits", "{home}/net.onnx", "--data", "{home}/photos", "--weights", "w"], "is no network of the zoo"),
        (["exits", "{home}/net.onnx", "--data", "{home}/photos", "--exit", "nowhere"], "no exit can sit at 'nowhere'"),
        (["exits", "{home}/net.onnx", "--data", "{home}/photos", "--cut", "nowhere"], "does not separate it"),
        (["exits", "{home}/net.onnx", "--data", "digits"], "the data has 10 labels"),
        (["exits", "{home}/net.onnx", "--data", "{home}/photos", "--set", "model.width=2"], "networks of the zoo"),
        (["exits", "mlp", "--data", "digits", "--train", "joint", "--set", "model.hidden=2"], "options do not fit"),
        (["exits", "{home}/net.onnx", "--data", "{home}/photos", "--set", "training.epoch=2"], 'nearest is "epochs"'),
        (["exits", "lenet-mnist", "--data", "{home}/photos"], "has other labels"),
        (["bottleneck", "lenet", "--data", "mnist", "--at", "relu"], "weights are new"),
        (["derive", "{home}/lenet", "--level", "output"], "write CUT=TIER"),
        (["derive", "{home}/lenet", "--level", "relu=device", "--exit", "relu_2"], "no --level"),
        (["derive", "{home}/lenet", "--level", "relu=device"], "end at 'output'"),
    ],
)  # fmt: skip
def test_what_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["model", *(word.format(home=home) for word in words), "--out", str(tmp_path / "out")]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_of_the_zoo_is_trained_with_its_exits_and_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["model", "exits", "mlp", "--data", "digits", "--train", "joint", "--exit", "relu", "--head", "linear"]
    rows = run(capsys, *command, "--set", "training.epochs=8", "--out", str(tmp_path / "a"),
               "--set", "training.learning_rate=0.05", "--set", "training.batch_size=32",
               "--weights", str(tmp_path / "mine.npz"))  # fmt: skip
    by_exit = {row["exit"]: row["test"] for row in rows if row["exit"]}
    assert list(by_exit) == ["relu", "final"] and min(by_exit.values()) > 0.85
    found = load_trained("mine", tmp_path)
    assert found.recipe.heads == {"relu": "linear"} and found.recipe.shapes == {"relu": (64,)}
    pieces = Bundle.open(tmp_path / "a").manifest.preprocess
    assert found.recipe.preprocess == pieces and found.recipe.data == "digits"


def test_zoo_lists_networks_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in run(capsys, "model", "zoo")}
    assert rows["lenet-mnist"] == {"name": "lenet-mnist", "network": "lenet", "data": "mnist", "exits": "max_pool2d"}
    assert {"resnet20", "vgg11", "mobile"} <= rows.keys()
    assert all(row["network"] in rows for row in rows.values())


@pytest.mark.parametrize("name", names())
def test_committed_weights_load_and_come_back(name: str, tmp_path: Path) -> None:
    found = load_trained(name)
    assert isinstance(found.recipe, Recipe) and not found.net.training
    save_trained(tmp_path / f"{name}.npz", found.recipe, found.net, list(found.heads.values()))
    again = load_trained(name, tmp_path)
    for ours, theirs in zip([found.net, *found.heads.values()], [again.net, *again.heads.values()], strict=True):
        other = theirs.state_dict()
        assert all(np.array_equal(value.numpy(), other[key].numpy()) for key, value in ours.state_dict().items())
    fresh = zoo_net(found.recipe.zoo, found.recipe.input_shape, len(found.recipe.labels), found.recipe.options)
    assert not np.array_equal(next(fresh.parameters()).detach(), next(found.net.parameters()).detach())
