"""Exits on any edge: cut and joined again the network stays itself, and the outcomes are those of the exits."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import exit_nets
import numpy as np
import pytest
import torch
from exit_nets import SHAPE, digits, graph_of, make_net
from own_nets import NUM_CLASSES, SHAPES, make_network

from tierline.core import catalog
from tierline.core.bundle import Bundle, Preprocess
from tierline.core.candidates import candidates_of, joint, read_outcomes
from tierline.core.errors import BundleError, ConfigError
from tierline.core.flow.levels import LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Tier
from tierline.models.data.dataset import Split
from tierline.models.evaluate import route, run_bundle
from tierline.models.exits.attach import attach, make_heads
from tierline.models.exits.build import build, choose_cuts
from tierline.models.exits.derive import Stage, derive
from tierline.models.exits.given import read_given
from tierline.models.exits.heads import Head
from tierline.models.exits.tap import Tap
from tierline.models.train.exits import FINAL, ExitProgress, ExitTraining, augment
from tierline.models.views import prepare, preprocess_for

PLAIN = {1: Preprocess((8, 8), 1, (0.5,), (0.25,)), 3: Preprocess((8, 8), 3, (0.5,) * 3, (0.25,) * 3)}
HOW = ExitTraining(epochs=3, batch_size=32, learning_rate=0.05, shift=1)


def random_split(channels: int, num: int = 12) -> Split:
    rng = np.random.default_rng(2)
    shape = (num, 8, 8) if channels == 1 else (num, 8, 8, channels)
    return Split(rng.integers(0, 256, shape, np.uint8), rng.integers(0, NUM_CLASSES, num))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A residual network with random exits of both kinds at every edge that takes one."""
    network = make_network("residual")
    edges = [point.name for point in network.cut_points()[1:]]
    torch.manual_seed(4)
    heads = make_heads(network, edges[:-1:2], "conv:2", NUM_CLASSES)
    heads |= make_heads(network, edges[-1:], "linear", NUM_CLASSES)
    for head in heads.values():
        for layer in head.layers:
            if isinstance(layer, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(layer.running_mean)
                torch.nn.init.uniform_(layer.weight)
        head.eval()
    return build(
        network,
        heads,
        tmp_path_factory.mktemp("residual"),
        name="residual",
        labels=[f"c{i}" for i in range(NUM_CLASSES)],
        preprocess=PLAIN[3],
        validation=random_split(3),
        cuts=edges,
    )


def test_every_pair_of_cuts_makes_sections_that_are_the_network(residual: Bundle, tmp_path: Path) -> None:
    network, split = make_network("residual"), random_split(3)
    images = Preprocessor(PLAIN[3]).many(split.images)
    engine = catalog.make("engine", "reference", model=network.model.SerializeToString(), name="whole", threads=1)
    whole = engine.run({network.input: images})[network.output]
    cuts = [cut.name for cut in candidates_of(residual.manifest).cuts]
    assert cuts[0] == "input" and cuts[-1] == "output" and len(cuts) > 5
    for number, (low, high) in enumerate(combinations(cuts[:-1], 2)):
        stages = [Stage(low, Tier.DEVICE), Stage(high, Tier.EDGE), Stage("output", Tier.CLOUD)]
        made = derive(residual, stages, tmp_path / str(number))
        found = Oracle(Bundle.open(made.folder), engine_maker("reference")).exits(images[np.newaxis])
        assert np.array_equal(found.outputs[FINAL][LOGITS], whole), (low, high)


def test_outcomes_are_what_the_exits_of_a_derived_bundle_say(residual: Bundle, tmp_path: Path) -> None:
    outcomes, split = read_outcomes(residual), random_split(3)
    at = [cut.name for cut in candidates_of(residual.manifest).cuts if cut.exit is not None]
    assert len(at) > 3 and outcomes.exits == (*at[:-1], FINAL)
    stages = [Stage(cut, Tier.DEVICE if cut == at[0] else Tier.CLOUD, is_exit=True) for cut in at]
    made = derive(residual, stages, tmp_path, goal="target_exit_share=0.5")
    assert made.manifest.exits() == list(outcomes.exits)
    found = run_bundle(made, prepare(split, PLAIN[3]))
    for row, name in enumerate(outcomes.exits):
        assert np.allclose(outcomes.score_ES[row], found.scores[name], atol=1e-6)
        right = found.logits[name].argmax(1) == split.labels
        assert np.array_equal(outcomes.quality_ES[row], right)
        assert np.array_equal(outcomes.agreement_ES[row], found.logits[name].argmax(1) == found.logits[FINAL].argmax(1))
    for thresholds in ([0.0] * (len(at) - 1), [0.7] * (len(at) - 1), [1.0] * (len(at) - 1)):
        routed = route(found, dict(zip(outcomes.exits, thresholds, strict=False)))
        mine = joint(outcomes, outcomes.exits, thresholds)
        assert mine.exit_share == routed.exit_share and mine.quality == pytest.approx(routed.accuracy)
    assert np.array_equal(outcomes.images, split.images) and np.array_equal(outcomes.truth_S, split.labels)


def test_a_derived_bundle_is_derived_from_again_to_the_same_bytes(residual: Bundle, tmp_path: Path) -> None:
    stages = [Stage("relu_1", Tier.DEVICE), Stage("output", Tier.CLOUD)]
    first = derive(residual, stages, tmp_path / "a")
    other = derive(first, [Stage("output", Tier.CLOUD)], tmp_path / "b")
    assert [level.tier for level in other.manifest.levels] == [Tier.CLOUD]
    assert derive(other, stages, tmp_path / "c").digest == first.digest != other.digest


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (["relu_1"], "end at 'output'"),
        (["output", "relu_1"], "must go upwards"),
        (["nowhere", "output"], "no cut 'nowhere'"),
        ([], "must go upwards"),
    ],
)
def test_levels_that_make_no_network(residual: Bundle, tmp_path: Path, cuts: list[str], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        derive(residual, [Stage(cut, Tier.DEVICE) for cut in cuts], tmp_path)


def test_an_exit_that_is_no_candidate(residual: Bundle, tmp_path: Path) -> None:
    bare = next(cut.name for cut in candidates_of(residual.manifest).cuts[1:] if cut.exit is None)
    with pytest.raises(BundleError, match="no candidate exit at"):
        derive(residual, [Stage(bare, Tier.DEVICE, is_exit=True), Stage("output", Tier.CLOUD)], tmp_path)


def test_cuts_worth_trying_shrink_and_stand_behind_their_relu() -> None:
    lenet = choose_cuts(make_network("lenet"))
    assert [point.name for point in lenet] == ["relu", "max_pool2d", "max_pool2d_1", "relu_2", "relu_3"]
    for name in SHAPES:
        sizes = [point.num_bytes for point in choose_cuts(make_network(name))]
        assert sizes == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize("shape", [(5,), (3, 8, 8), (2, 5, 9), (1, 1, 1), (4, 33, 16)])
@pytest.mark.parametrize("kind", ["linear", "conv", "conv:3"])
def test_heads_take_every_shape(kind: str, shape: tuple[int, ...]) -> None:
    assert Head(kind, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("kind", ["lineal", "conv:", "conv:x", "conv:0", "linear:3"])
def test_heads_of_another_kind_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="head"):
        Head(kind, (3, 8, 8), 7)


def test_exits_on_a_frozen_network_learn_and_leave_it_alone() -> None:
    net, data = make_net(), digits()
    network = graph_of(net)
    before, preprocess = network.model.SerializeToString(), preprocess_for(data, 1)
    seen = []
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        heads = make_heads(network, ["max_pool2d"], "conv:8", 10)
        assert attach(network, heads, data, preprocess, HOW, progress=seen.append) is network
        runs.append([p.detach().numpy().copy() for p in heads["max_pool2d"].parameters()])
    assert network.model.SerializeToString() == before
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    assert seen[2].accuracy["max_pool2d"] > 0.6 > 0.4 > seen[2].accuracy[FINAL]
    assert seen[2].accuracy[FINAL] == seen[0].accuracy[FINAL]


def test_joint_training_moves_the_network_and_its_exits(tmp_path: Path) -> None:
    data, preprocess = digits(), preprocess_for(digits(), 1)
    net, seen = make_net(), []
    network = graph_of(net)
    torch.manual_seed(0)
    heads = make_heads(network, ["max_pool2d"], "linear", 10)
    trained = attach(network, heads, data, preprocess, HOW, net=net, progress=seen.append)
    assert min(seen[-1].accuracy.values()) > 0.8
    bundle = build(
        trained, heads, tmp_path, name="s", labels=data.labels, preprocess=preprocess, validation=data.validation
    )
    assert bundle.manifest.calibration is not None
    assert bundle.manifest.calibration.accuracy == pytest.approx(seen[-1].accuracy, abs=1e-6)
    assert [level.tier for level in bundle.manifest.levels] == [Tier.DEVICE, Tier.CLOUD]


def test_training_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    data, preprocess = digits(200), preprocess_for(digits(), 1)
    network = graph_of(make_net())
    states = []

    def train(stop: int, saved: Path) -> Head:
        torch.manual_seed(0)
        heads = make_heads(network, ["relu_1"], "conv:4", 10)

        def stop_there(report: ExitProgress) -> None:
            if report.epoch == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            attach(network, heads, data, preprocess, HOW, progress=stop_there, checkpoint=saved)
        return heads["relu_1"]

    for parts in ([3], [1, 3]):
        for stop in parts:
            head = train(stop, tmp_path / f"{len(parts)}.pt")
        states.append([v.numpy() for v in head.state_dict().values()])
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))
    (tmp_path / "1.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"1\.pt: is no checkpoint of this training"):
        train(3, tmp_path / "1.pt")


def test_a_torch_module_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(exit_nets.__file__).parent)
    given = read_given(
        "exit_nets:make_net", digits(), mean=(0.5,), std=(0.25,), exits=["relu_1"], head="linear", seed=3
    )
    assert given.network.tensors[given.network.input].shape == SHAPE and given.preprocess.mean == (0.5,)
    assert given.net is not None and list(given.heads) == ["relu_1"]
    again = read_given("exit_nets:make_net", digits(), exits=["relu_1"], head="linear", seed=3)
    ours, theirs = (x.heads["relu_1"].state_dict().values() for x in (given, again))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Renamed(torch.nn.Module):
    """torch counts two additions in another order than ONNX, whose batch-norm has become one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(x, 1)[:, :10]


def test_an_edge_that_torch_calls_otherwise_is_refused() -> None:
    network = make_network("residual")
    with pytest.raises(BundleError, match="torch has no tensor 'add_40'"):
        Tap(Renamed(), SHAPE, ["add_40"])
    tap = Tap(make_net(), SHAPE, ["relu_1"])
    other = torch.zeros(2, 16, 4, 4).numpy()
    with pytest.raises(BundleError, match="'relu_1' is another tensor in torch"):
        tap.check(lambda _: {"relu_1": other})
    with pytest.raises(BundleError, match="no exit can sit at 'nowhere'"):
        make_heads(network, ["nowhere"], "linear", 5)


def test_images_are_shifted_and_mirrored_each_on_its_own() -> None:
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(40, 1, 1, 1) + 1
    torch.manual_seed(0)
    moved = augment(images, 1, True)
    assert moved.shape == images.shape and len(torch.unique(moved.flatten(1), dim=0)) > 9
    assert set(moved[:, 0, 4, 4].tolist()) <= set((images[0, 0, 3:6, 2:7]).flatten().tolist())
    assert augment(images, 0, False) is images


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 1}, {"shift": -1}, {"learning_rate": float("nan")}])
def test_training_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ExitTraining(**wrong)
