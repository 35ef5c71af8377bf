"""The torch Trainer: its optimisers against torch's own, its terms against formulas, its randomness against keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, DataError, ShapeMismatch
from tierline.core.rng import Key
from tierline.learning.compute import Fitted, Job, Match
from tierline.learning.errors import RuleError
from tierline.models.train.flat import FlatModel
from tierline.models.train.local import LocalTrainer

RNG = np.random.default_rng(0)
INPUTS = torch.from_numpy(RNG.normal(size=(50, 1, 4, 4)).astype(np.float32))
LABELS = torch.from_numpy(RNG.integers(0, 3, 50))
KEY = Key("r", 1, "w", "", "fit")


def build(seed: int = 0, **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = catalog.make("model", "mlp", input_shape=(1, 4, 4), num_classes=3, **options)
    return model


def trainer(rows: list[int] | None = None, seed: int = 0) -> tuple[LocalTrainer, Params]:
    model = FlatModel(build(seed))
    return LocalTrainer(model, INPUTS, LABELS, None if rows is None else np.array(rows)), model.read()


def by_hand(job: Job, make: Callable[[nn.Module], torch.optim.Optimizer], seed: int = 0) -> np.ndarray:
    """The same fit, written with torch's optimisers and one tensor at a time."""
    model = build(seed)
    optimizer = make(model)
    first = [p.detach().clone() for p in model.parameters()]
    for epoch in range(job.epochs):
        order = torch.from_numpy(job.key.child(f"epoch {epoch}").permutation(50))
        for rows in torch.split(order, job.batch_size or 50):
            loss = cross_entropy(model(INPUTS[rows])["logits"], LABELS[rows])
            if job.proximal:
                gaps = ((p - p0).square().sum() for p, p0 in zip(model.parameters(), first, strict=True))
                loss = loss + 0.5 * job.proximal * sum(gaps)
            optimizer.zero_grad()
            loss.backward()
            if job.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), job.clip_norm)
            optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


@pytest.mark.parametrize(
    "job",
    [
        Job(epochs=2, batch_size=8, lr=0.1, key=KEY),
        Job(epochs=3, lr=0.2, key=KEY),
        Job(epochs=2, batch_size=8, lr=0.1, momentum=0.9, weight_decay=0.01, key=KEY),
        Job(epochs=2, batch_size=8, lr=0.1, proximal=0.5, key=KEY),
        Job(epochs=2, batch_size=8, lr=0.1, clip_norm=0.3, key=KEY),
        Job(epochs=3, batch_size=8, lr=0.01, optimizer="adam", weight_decay=0.01, key=KEY),
    ],
)
def test_a_fit_is_torchs_optimiser_on_the_same_batches(job: Job) -> None:
    local, x = trainer()
    fitted = local.fit(x, job)

    def make(model: nn.Module) -> torch.optim.Optimizer:
        if job.optimizer == "adam":
            return torch.optim.Adam(model.parameters(), lr=job.lr, weight_decay=job.weight_decay)
        return torch.optim.SGD(model.parameters(), lr=job.lr, momentum=job.momentum, weight_decay=job.weight_decay)

    assert np.abs(fitted.values.flat - by_hand(job, make)).max() < 2e-6
    assert np.abs(fitted.values.flat - x.flat).max() > 1e-2
    assert (fitted.num_samples, fitted.num_steps) == (50, job.epochs * -(-50 // (job.batch_size or 50)))


def test_a_fit_follows_its_key_and_leaves_no_trace() -> None:
    local, x = trainer()
    before = x.flat.copy()
    job = Job(epochs=1, batch_size=8, key=KEY)

    def bits(fitted: Fitted) -> bytes:
        return fitted.values.flat.tobytes()

    torch.manual_seed(1)
    drawn = torch.random.get_rng_state()
    one = local.fit(x, job)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    local.fit(x, dataclasses.replace(job, momentum=0.5))
    local.gradient(one.values, {})
    again = local.fit(x, job)
    other = local.fit(x, dataclasses.replace(job, key=KEY.child("x")))
    assert bits(one) == bits(again) != bits(other)
    assert np.array_equal(x.flat, before) and one.loss == again.loss


def test_dropout_follows_the_key_too() -> None:
    model = FlatModel(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)))
    local, x = LocalTrainer(model, INPUTS, LABELS), model.read()
    one, again = (local.fit(x, Job(key=KEY)).values.flat for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, local.fit(x, Job(key=KEY.child("x"))).values.flat)


def test_steps_may_be_counted_instead_of_epochs() -> None:
    local, x = trainer()
    for steps, epochs in ((7, 1), (14, 2)):
        counted = local.fit(x, Job(num_steps=steps, batch_size=8, key=KEY))
        whole = local.fit(x, Job(epochs=epochs, batch_size=8, key=KEY))
        assert counted.num_steps == steps and np.array_equal(counted.values.flat, whole.values.flat)
    assert local.fit(x, Job(num_steps=10, batch_size=8, key=KEY)).num_steps == 10


def test_a_correction_is_added_to_every_gradient() -> None:
    local, x = trainer()
    c = 0.5 * x
    g = local.gradient(x, {}).values
    fitted = local.fit(x, Job(lr=0.1, correction=c, key=KEY))
    assert np.abs(fitted.values.flat - (x.flat - 0.1 * (g.flat + c.flat))).max() < 1e-6


def test_several_workers_share_one_model() -> None:
    model = FlatModel(build())
    x = model.read()
    halves = [LocalTrainer(model, INPUTS, LABELS, np.arange(50)[k::2]) for k in range(2)]
    alone = [LocalTrainer(FlatModel(build()), INPUTS[k::2], LABELS[k::2]) for k in range(2)]
    job = Job(epochs=2, batch_size=4, key=KEY)
    for shared, own in zip(halves, alone, strict=True):
        assert shared.num_samples == 25
        assert np.array_equal(shared.fit(x, job).values.flat, own.fit(x, job).values.flat)


def test_gradients_average_over_samples_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    local, x = trainer()
    target = RNG.normal(size=(50, 64)).astype(np.float32)
    terms = (Match("features", target, 0.3), Match("logits", target[:, :3], 0.2, "soft"))
    whole = local.gradient(x, {}, terms)
    monkeypatch.setattr("tierline.models.train.local._CHUNK", 16)
    parts = local.gradient(x, {}, terms)
    assert np.abs(whole.values.flat - parts.values.flat).max() < 1e-6 and whole.loss == pytest.approx(parts.loss)
    model = build()
    outputs = model(INPUTS)
    loss = cross_entropy(outputs["logits"], LABELS) + 0.3 * mse_loss(outputs["features"], torch.from_numpy(target))
    soft = torch.softmax(torch.from_numpy(target[:, :3]), 1)
    loss = loss + 0.2 * kl_div(torch.log_softmax(outputs["logits"], 1), soft, reduction="batchmean")
    loss.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]
    assert np.abs(whole.values.flat - expected.numpy()).max() < 1e-6 and whole.loss == pytest.approx(loss.item())


def test_matching_terms_follow_the_samples_through_a_fit() -> None:
    local, x = trainer(rows=list(range(0, 50, 2)))
    h = local.outputs(x, {}, ("features",))["features"]
    assert h.shape == (25, 64)
    kept = local.fit(x, Job(epochs=3, batch_size=5, lr=0.05, terms=(Match("features", h, 100.0),), key=KEY))
    free = local.fit(x, Job(epochs=3, batch_size=5, lr=0.05, key=KEY))
    gap = [np.abs(local.outputs(f.values, {}, ("features",))["features"] - h).mean() for f in (kept, free)]
    assert gap[0] < 0.5 * gap[1]


def test_a_section_forward_and_backward_is_the_gradient_of_the_whole() -> None:
    local, x = trainer()
    other = 2.0 * x
    tokens = {7: x, 8: other}
    logits = {token: local.forward(at, token, {"inputs": INPUTS.numpy()})["logits"] for token, at in tokens.items()}
    local.fit(x, Job(key=KEY))  # the shared model moves on; what ran before is remembered as it ran
    for token, at in tokens.items():
        p = np.exp(logits[token] - logits[token].max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        back = local.backward(token, {"logits": (p - np.eye(3, dtype=np.float32)[LABELS.numpy()]) / 50})
        expected = local.gradient(at, {"inputs": INPUTS.numpy(), "labels": LABELS.numpy()})
        assert np.abs(back.values.flat - expected.values.flat).max() < 1e-6
        assert back.inputs["inputs"].shape == INPUTS.shape and np.abs(back.inputs["inputs"]).max() > 0
    with pytest.raises(RuleError, match="nothing was run forward under token 7"):
        local.backward(7, {})
    local.forward(other, 7, {"inputs": INPUTS.numpy()})  # left behind by a turn that was given up
    logits[7] = local.forward(x, 7, {"inputs": INPUTS.numpy()})["logits"]
    again = local.backward(7, {"logits": np.ones_like(logits[7])})
    local.forward(x, 8, {"inputs": INPUTS.numpy()})
    assert np.array_equal(again.values.flat, local.backward(8, {"logits": np.ones_like(logits[7])}).values.flat)
    local.forward(x, 7, {"inputs": INPUTS.numpy()})
    with pytest.raises(RuleError, match="no output features2"):
        local.backward(7, {"features2": np.zeros(1)})


def test_what_does_not_fit_is_refused_by_name() -> None:
    local, x = trainer()
    with pytest.raises(ShapeMismatch, match=r"layers\.0\.weight is absent in the parameters given"):
        local.fit(Params.from_arrays({"w": np.zeros(3)}), Job(key=KEY))
    with pytest.raises(ShapeMismatch, match="a batch needs 'labels'; it holds inputs"):
        local.gradient(x, {"inputs": INPUTS.numpy()})
    with pytest.raises(RuleError, match="no h; it has features, logits"):
        local.outputs(x, {}, ("h",))
    with pytest.raises(DataError, match=r"the loss is .* after 1 steps; a smaller lr may help"):
        local.fit(x, Job(epochs=2, lr=1e38, key=KEY))
    with pytest.raises(DataError, match="0 samples"):
        LocalTrainer(FlatModel(build()), INPUTS, LABELS, np.array([], np.int64)).fit(x, Job(key=KEY))
    wrong: list[dict[str, object]] = [
        {"epochs": 0}, {"batch_size": 0}, {"num_steps": 0}, {"lr": -1.0}, {"momentum": 1.0}, {"clip_norm": 0.0},
        {"proximal": float("inf")}, {"optimizer": "lbfgs"}, {"optimizer": "adam", "momentum": 0.9},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ConfigError, match=f"job: {list(options)[-1]} = "):
            Job(**options)  # type: ignore[arg-type]


def test_statistics_that_are_not_trained_travel_as_buffers() -> None:
    model = FlatModel(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)))
    local, x = LocalTrainer(model, INPUTS, LABELS), model.read()
    assert sorted(x.buffers) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
    fitted = local.fit(x, Job(epochs=2, key=KEY)).values
    assert fitted.buffers["1.num_batches_tracked"] == 2 and x.buffers["1.num_batches_tracked"] == 0
    assert local.fit(x, Job(key=KEY)).values.buffers["1.num_batches_tracked"] == 1


def test_the_zoos_sizes_are_the_papers() -> None:
    def size(name: str, **options: object) -> int:
        model = catalog.make("model", name, input_shape=(1, 28, 28), num_classes=10, **options)
        return sum(p.numel() for p in model.parameters())

    assert size("mnist_cnn") == 1_663_370
    assert size("mlp", hidden=[200, 200]) == 199_210
    assert size("mlp", hidden=[]) == 7850
