"""Cut models against the uncut network, on the same samples in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError, NodeFailed, UnknownCodec
from tierline.core.rng import Key
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Job
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.effects import Exchange, Message
from tierline.learning.errors import RuleError
from tierline.learning.packing import unpacked
from tierline.learning.rule import Rule
from tierline.learning.strategy._cut import Cut, root_batch
from tierline.models.data.load import load
from tierline.models.train.flat import FlatModel
from tierline.models.train.local import LocalTrainer
from tierline.models.train.population import Population

RNG = np.random.default_rng(0)
INPUTS = torch.from_numpy(RNG.normal(size=(60, 1, 8, 8)).astype(np.float32))
LABELS = torch.from_numpy(RNG.integers(0, 3, 60))
SIZES = {1: (60,), 2: (25, 35), 3: (10, 20, 30)}
MLP: dict[str, Any] = {"name": "mlp", "hidden": [12, 9]}
SGD = Job(num_steps=10, batch_size=7, lr=0.1, momentum=0.9, weight_decay=1e-3)
ADAM = Job(num_steps=10, batch_size=7, lr=0.01, optimizer="adam")


class Run:
    """`num` workers and a root in memory; `sent` holds all messages of exchanges, by sender, receiver and tag."""

    def __init__(
        self,
        strategy: str,
        num: int,
        job: Job,
        *,
        model: Mapping[str, Any] = MLP,
        world: World | None = None,
        **how: Any,
    ) -> None:
        options = dict(model)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = catalog.make("model", options.pop("name"), input_shape=(1, 8, 8), num_classes=3, **options)
        flat = FlatModel(module)
        self.start, self.job, self.ids = flat.read(), job, worker_ids(num)
        rows = np.split(np.arange(60), np.cumsum(SIZES[num])[:-1])
        self.trainers = {me: LocalTrainer(flat, INPUTS, LABELS, r) for me, r in zip(self.ids, rows, strict=True)}
        root = LocalTrainer(flat, INPUTS, LABELS, np.empty(0, np.int64))
        self.rules = federation(strategy, num, how)
        self.sent: list[tuple[NodeId, NodeId, str, Message]] = []
        for me, rule in self.rules.items():
            self._listen(me, rule)
        star = catalog.make("topology", "star")
        self.driver = Memory(
            self.rules, {SERVER: root, **self.trainers}, star, self.start, lr=lambda _: job.lr, job=job, world=world
        )

    def _listen(self, me: NodeId, rule: Rule) -> None:
        turn = rule.turn

        def heard(t: Any) -> Iterator[Any]:
            generator, answer = turn(t), None
            while True:
                try:
                    effect = generator.send(answer)
                except StopIteration:
                    return
                if isinstance(effect, Exchange):
                    self.sent += [(me, to, effect.tag, message) for to, message in effect.out.items()]
                answer = yield effect

        rule.turn = heard  # type: ignore[method-assign, assignment]

    def after(self, rounds: int) -> np.ndarray:
        self.driver.run(rounds)
        return self.rules[SERVER].x.flat

    def uncut(self, rounds: int) -> np.ndarray:
        """Fits of the whole model on each worker's samples in turn."""
        x = self.start
        for round in range(rounds):
            for me in self.ids:
                key = Key("run", round, me, "", "fit")
                x = self.trainers[me].fit(x, Job(**{f: getattr(self.job, f) for f in FIELDS}, key=key)).values
        return x.flat


FIELDS = ("num_steps", "batch_size", "lr", "momentum", "weight_decay", "optimizer")


@pytest.mark.parametrize("job", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("how", [{}, {"labels": "device"}, {"cut": 2, "micro_batches": 3}], ids=str)
def test_after_100_steps_the_cut_model_is_the_uncut_one(job: Job, how: dict[str, Any]) -> None:
    run = Run("split", 2, job, **how)
    found, expected = run.after(5), run.uncut(5)
    assert np.abs(expected - run.start.flat).max() > 0.1
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("how", [{"cut": 1, "labels": "device"}, {"cut": 2, "labels": "device"}, {"cut": 3}], ids=str)
def test_convolutions_are_cut_anywhere(how: dict[str, Any]) -> None:
    run = Run("split", 1, Job(num_steps=5, batch_size=7, lr=0.05), model={"name": "mnist_cnn"}, **how)
    assert np.abs(run.after(1) - run.uncut(1)).max() < 1e-5


def test_micro_batches_in_flight_give_the_same_sum_sooner() -> None:
    world = World(compute_s=0.01, link=LinkSpec(0.05, 1e5))
    runs = [
        Run("split", 1, SGD, world=world, micro_batches=m, labels=where) for where in ("root", "device") for m in (1, 2)
    ]
    whole, halves, u_whole, u_halves = (run.after(1) for run in runs)
    assert np.abs(whole - halves).max() < 1e-6 and np.abs(u_whole - u_halves).max() < 1e-6
    assert [len([tag for *_, tag, _ in run.sent if tag.startswith("up/0/")]) for run in runs] == [1, 2, 1, 2]
    # One after the other they would wait for twice the latency; in flight together they also share out the links.
    assert runs[1].driver.time_s < runs[0].driver.time_s and runs[3].driver.time_s < runs[2].driver.time_s


@pytest.mark.parametrize("strategy", ["split", "splitfed"])
def test_labels_that_stay_on_the_device_are_in_no_message(strategy: str) -> None:
    def label_bytes(run: Run) -> list[str]:
        """Tags of messages that hold the labels of a batch, in any width that arrays of labels have."""
        found: list[str] = []
        for _, _, tag, message in run.sent:
            if not tag.startswith(("up/", "back/")):
                continue
            arrays = [v.tobytes() for v in message.values() if isinstance(v, np.ndarray)]
            step = int(tag.split("/")[1])
            for me in run.ids:
                job = Job(num_steps=4, batch_size=7, key=Key("run", 0, me, "", "fit"))
                labels = run.trainers[me].draw(job, step).batch["labels"]
                forms = [labels.astype(dtype).tobytes() for dtype in ("i8", "i4", "u1", "f4", "f8")]
                if any(form in array for form in forms for array in arrays):
                    found.append(tag)
        return found

    job = Job(num_steps=4, batch_size=7, lr=0.1)
    kept, sent = (Run(strategy, 2, job, labels=where) for where in ("device", "root"))
    kept.after(1)
    sent.after(1)
    assert label_bytes(kept) == []
    assert {key for *_, message in kept.sent for key in message} == {"x", "share", "more", "num_steps", "num_samples"}
    assert len(label_bytes(sent)) == 2 * 4


@pytest.mark.parametrize(("strategy", "per_value"), [("split", 4), ("splitfed", 8)])
@pytest.mark.parametrize("labels", ["root", "device"])
def test_traffic_is_that_of_the_formula(strategy: str, per_value: int, labels: str) -> None:
    run = Run(strategy, 3, Job(epochs=1, batch_size=7, lr=0.1), labels=labels)
    run.after(1)
    p, num_cuts = 60, {"root": [12], "device": [12, 9]}[labels]
    crossed = [
        payload.num_bytes
        for *_, tag, message in run.sent
        if tag != "part" and "x" in message
        for payload in unpacked(message["x"], ()).payloads.values()
    ]
    assert sum(crossed) == sum(4 * 2 * p * q for q in num_cuts)
    device = 64 * 12 + 12 + (9 * 3 + 3 if labels == "device" else 0)
    handed = 3 * device * 4 + 3 * device * per_value + (3 * 8 if strategy == "splitfed" else 0)
    frames = sum(len(m["x"]) for *_, tag, m in run.sent if tag != "part" and "x" in m) - sum(crossed)  # type: ignore[arg-type]
    numbers = sum(8 for *_, m in run.sent for value in m.values() if not isinstance(value, np.ndarray))
    of_labels = 8 * p if labels == "root" else 0
    assert run.driver.counts.num_bytes == sum(crossed) + handed + frames + numbers + of_labels
    assert frames < 80 * len(crossed)


def test_splitfed_that_averages_both_parts_is_federated_averaging() -> None:
    job = Job(epochs=2, batch_size=7, lr=0.1, momentum=0.5)
    cut, whole = Run("splitfed", 3, job), Run("fedavg", 3, job)
    assert np.abs(cut.after(4) - whole.after(4)).max() < 1e-5
    other = Run("splitfed", 3, job, version=2)
    assert np.abs(other.after(4) - whole.after(4)).max() > 1e-3


def test_splitfed_with_one_worker_is_split_learning() -> None:
    expected = Run("split", 1, SGD).after(3)
    for version in (1, 2):
        assert np.abs(Run("splitfed", 1, SGD, version=version).after(3) - expected).max() < 1e-6


def test_version_2_steps_with_each_batch_of_each_worker() -> None:
    """One step per worker: the root's part is two steps of SGD, one after the other, in the order drawn."""
    run = Run("splitfed", 2, Job(num_steps=1, lr=0.1), version=2)
    found = run.after(1)
    x = run.start
    order = [run.ids[i] for i in Key("run", 0, SERVER, "", "order/0").permutation(2)]
    root = slice(64 * 12 + 12, None)
    for me in order:
        # The devices' parts stand still until the mean is taken.
        g = run.trainers[me].gradient(x, {}).values.flat.copy()
        g[: root.start] = 0
        x = Params(x.layout, x.flat - np.float32(0.1) * g)
    assert np.abs(found[root] - x.flat[root]).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["root", "device"])
def test_eight_bits_per_value_cost_less_than_a_point_on_digits(labels: str) -> None:
    ids = worker_ids(2)
    nodes = Population(load("digits"), ids, partition={"name": "iid"}, model=MLP | {"hidden": [32, 32]}, seed=0)
    found = []
    for codec in ("raw", "affine:8"):
        rules = federation("split", 2, {"labels": labels, "codec": codec})
        job = Job(epochs=1, batch_size=20)
        star = catalog.make("topology", "star")
        trainers = {SERVER: nodes.root, **nodes.trainers}
        Memory(rules, trainers, star, nodes.start, lr=lambda round: 0.2 * 0.8**round, job=job).run(12)
        found.append(nodes.evaluate(rules[SERVER].x)["test_accuracy"])
    assert found[0] > 0.9 and abs(found[1] - found[0]) <= 0.01


def root_hears(message: Mapping[str, object]) -> None:
    """Give the root the first message of a batch."""
    run = Run("split", 1, SGD)
    cut = Cut()
    turn: Any = type("Turn", (), {"rng": staticmethod(lambda name: Key("r", 0, "s", "", name))})
    generator = root_batch(cut, turn, NodeId("d"), cut.parts(run.start)[1], 0)
    next(generator)
    good = {"x": cut.coded(np.ones((2, 12), np.float32), Key("r", 0, "d", "", "x")), "share": 1.0, "more": 0}
    generator.send({NodeId("d"): good | {"labels": np.array([0, 1])} | message})


def test_what_no_device_sends_is_refused() -> None:
    root_hears({})
    coded = Cut().coded
    key = Key("r", 0, "d", "", "x")
    for message, told in [
        ({"share": 1.5}, "d sends a share 1.5 of a batch"),
        ({"share": float("nan")}, "d sends a share nan"),
        ({"more": 1}, "with 1 more"),
        ({"labels": np.array([0])}, "without a label for each row"),
        ({"labels": 3}, "without a label for each row"),
        ({"x": np.zeros(3, np.uint8)}, "ends 3 bytes too early|compressed message"),
        ({"x": coded(np.full((2, 12), np.nan, np.float32), key)}, "not finite"),
    ]:
        with pytest.raises(BadFrame, match=told):
            root_hears(message)


def test_options_that_cannot_work_are_refused() -> None:
    for options, told in [
        ({"cut": 0}, "cut = 0 must be at least 1"),
        ({"labels": "both"}, "labels = 'both'"),
        ({"codec": "affin"}, "no such codec"),
        ({"codec": "jpeg"}, "takes no float32"),
    ]:
        with pytest.raises((ConfigError, UnknownCodec), match=told):
            federation("split", 1, options)
    with pytest.raises(ConfigError, match="version = 3"):
        federation("splitfed", 1, {"version": 3})
    with pytest.raises(NodeFailed, match="leave the root nothing of 3 layers"):
        Run("split", 1, SGD, cut=3).after(1)
    with pytest.raises(NodeFailed, match="clip_norm needs the gradient of the whole model"):
        Run("split", 1, Job(clip_norm=1.0)).after(1)


def test_a_section_is_whole_layers_in_a_row() -> None:
    run = Run("split", 1, SGD)
    trainer, x = run.trainers[run.ids[0]], run.start
    half = Params.from_arrays({"layers.0.weight": x["layers.0.weight"]})
    apart = Params.from_arrays({name: x[name] for name in x if not name.startswith("layers.1")})
    for at in (half, apart):
        with pytest.raises(RuleError, match=r"layers.0.weight.* are no Section of Mlp"):
            trainer.forward(at, 0, {"inputs": INPUTS.numpy()})
