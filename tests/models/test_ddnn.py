from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tierline.core.bundle import Bundle, Preprocess
from tierline.core.errors import ConfigError
from tierline.models.aggregate import NAMES, combine
from tierline.models.ddnn import DDNN, DDNNConfig
from tierline.models.evaluate import run_bundle
from tierline.models.export import make_bundle
from tierline.models.train.ddnn import TrainConfig, Views, drop_devices, joint_loss, predict, settle_statistics

PREPROCESS = Preprocess(size=(8, 6), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
PAIRS = list(itertools.product(NAMES, NAMES))


def network(**options: object) -> DDNN:
    """A small network with batch statistics that are not the initial ones."""
    torch.manual_seed(3)
    small: dict[str, object] = {"device_filters": 2, "edge_filters": 4, "cloud_filters": 4, "cloud_blocks": 1}
    model = DDNN(DDNNConfig(3, 5, (3, 8, 6), **{**small, **options}))  # type: ignore[arg-type]
    for _ in range(3):
        model(torch.randn(3, 32, 3, 8, 6), torch.ones(3, 32, dtype=torch.bool))
    return model.eval()


def views(num: int = 40) -> Views:
    rng = np.random.default_rng(1)
    view_labels = np.tile(rng.integers(0, 5, num), (3, 1))
    view_labels[rng.random((3, num)) < 0.3] = -1
    view_labels[0, :5] = view_labels[1, :5] = view_labels[2, :5] = -1  # nobody there at all
    images = rng.standard_normal((3, num, 3, 8, 6), np.float32)
    return Views(images, rng.integers(0, 5, num), view_labels)


def export(model: DDNN, folder: Path) -> Bundle:
    labels = [str(i) for i in range(model.config.num_classes)]
    return make_bundle(model, folder, name="t", labels=labels, preprocess=PREPROCESS)


@pytest.mark.parametrize("name", NAMES)
def test_absent_parts_never_count(name: str) -> None:
    parts = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)) - 5.0
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]], dtype=torch.bool)
    fused = combine(name, parts, present)
    parts[~present] = torch.nan
    torch.testing.assert_close(combine(name, parts, present), fused)
    assert (fused[2] == 0).all()
    if name == "concat":
        torch.testing.assert_close(fused[1], torch.cat([parts[0, 1], torch.zeros(2, 2), parts[2, 1]]))
    else:
        torch.testing.assert_close(fused[3], parts[1, 3])
        both = parts[[0, 2], 1]
        torch.testing.assert_close(fused[1], both.amax(0) if name == "max_pool" else both.mean(0))


def test_gradients_reach_present_parts_only() -> None:
    for name in NAMES:
        parts = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        present = torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool)
        combine(name, parts, present).sum().backward()
        assert parts.grad is not None and parts.grad.isfinite().all()
        assert (parts.grad[~present] == 0).all() and (parts.grad[1, 1] == 1).all()


@pytest.mark.parametrize(("local", "feature"), PAIRS)
def test_exported_bundle_agrees_with_torch(local: str, feature: str, tmp_path: Path) -> None:
    data = views()
    model = network(local_aggregator=local, feature_aggregator=feature)
    expected, found = predict(model, data), run_bundle(export(model, tmp_path), data)
    assert set(found.logits) == {"local", "edge", "cloud"}
    for name, logits in found.logits.items():
        assert logits.shape == (40, 5)
        np.testing.assert_allclose(logits, expected[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(found.devices[data.present], expected["device"][data.present], atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"edge_filters": 0, "device_blocks": 2, "cloud_blocks": 2},
        {"device_precision": "full", "edge_precision": "binary", "cloud_precision": "binary", "binary_exits": True},
        {"device_precision": "bits", "edge_precision": "full", "edge_blocks": 2, "local_aggregator": "concat"},
    ],
)
def test_every_shape_and_precision_exports(options: dict[str, object], tmp_path: Path) -> None:
    data = views()
    model = network(**options)
    bundle = export(model, tmp_path)
    expected, found = predict(model, data), run_bundle(bundle, data)
    assert list(found.logits) == model.config.exits == bundle.manifest.exits()
    for name, logits in found.logits.items():
        np.testing.assert_allclose(logits, expected[name], atol=1e-4, err_msg=name)
    bits = [level.feature_codec == "bitplane" for level in bundle.manifest.levels[:-1]]
    precisions = [model.config.device_precision, model.config.edge_precision][: len(bits)]
    assert bits == [precision != "full" for precision in precisions]


def test_files_are_whole_reproducible_and_exactly_binary(tmp_path: Path) -> None:
    first, second = export(network(), tmp_path / "a"), export(network(), tmp_path / "b")
    assert first.digest == second.digest
    for file in first.manifest.files:
        model = onnx.load_from_string(first.read(file))
        assert all(not tensor.external_data for tensor in model.graph.initializer)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    device = onnx.load_from_string(first.read("device-0.onnx"))
    evaluator = ReferenceEvaluator(device)
    (feature,) = evaluator.run(["feature"], {"image": views().images[0]})
    assert set(np.unique(feature)) == {-1.0, 1.0}
    weights = onnx.numpy_helper.to_array(device.graph.initializer[0])
    assert set(np.unique(weights)) == {-1.0, 1.0}


def test_an_absent_view_changes_nothing_but_its_own_part() -> None:
    model, data = network(), views()
    noisy = data.images.copy()
    noisy[~data.present] = 1e6
    before, after = predict(model, data), predict(model, Views(noisy, data.labels, data.view_labels))
    for name, logits in before.items():
        np.testing.assert_array_equal(logits, after[name])
    model.train()
    x, present = torch.from_numpy(data.images), torch.from_numpy(data.present)
    clean = model(x, present)
    statistics = [b.clone() for b in model.buffers()]
    other = network().train()
    dirty = other(torch.from_numpy(noisy), present)
    torch.testing.assert_close(clean, dirty)
    for one, two in zip(statistics, other.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_one_view_is_branchynet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DDNN(DDNNConfig(1, 5, (3, 8, 6), device_filters=2, edge_filters=0, cloud_filters=4)).eval()
    data = Views(views().images[:1], views().labels, views().labels[None])
    found = run_bundle(export(model, tmp_path), data)
    assert list(found.logits) == ["local", "cloud"]
    np.testing.assert_array_equal(found.logits["local"], found.devices[0])
    np.testing.assert_allclose(found.logits["cloud"], predict(model, data)["cloud"], atol=1e-4)


def test_loss_sums_exits_and_ignores_absent_views() -> None:
    data, model = views(), network()
    outputs = model(torch.from_numpy(data.images), torch.from_numpy(data.present))
    labels, view_labels = torch.from_numpy(data.labels), torch.from_numpy(data.view_labels)
    single = {name: joint_loss(outputs, labels, view_labels, _only(name)) for name in outputs}
    torch.testing.assert_close(joint_loss(outputs, labels, view_labels, {}), torch.stack(list(single.values())).sum())
    by_hand = sum(
        torch.nn.functional.cross_entropy(z[y >= 0], y[y >= 0])
        for z, y in zip(outputs["device"], view_labels, strict=True)
    )
    torch.testing.assert_close(single["device"], by_hand)
    view_labels[1] = -1
    assert joint_loss(outputs, labels, view_labels, {}).isfinite()


def _only(name: str) -> dict[str, float]:
    return {exit_name: float(exit_name == name) for exit_name in ("device", "local", "edge", "cloud")}


def test_settled_statistics_are_means_over_batches() -> None:
    data, model = views(), network()
    how = TrainConfig(batch_size=20, device_dropout=0.0)
    images, present = torch.from_numpy(data.images), torch.ones(3, 40, dtype=torch.bool)
    weights = [p.clone() for p in model.parameters()]
    settle_statistics(model, images, present, how, 2)
    block = model.device(1).conv_blocks()[0]
    pooled = block.pool(block.conv(images[1]))
    assert block.norm.running_mean is not None and block.norm.momentum == 0.1
    torch.testing.assert_close(block.norm.running_mean, pooled.mean((0, 2, 3)))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_dropped_devices_leave_at_least_one() -> None:
    torch.manual_seed(0)
    present = torch.rand(6, 4000) < 0.7
    arrives = drop_devices(present, 0.2)
    assert not (arrives & ~present).any()
    assert torch.equal(arrives.any(0), present.any(0))
    assert 0.15 < 1.0 - arrives.sum().item() / present.sum().item() < 0.21
    assert drop_devices(present, 0.0) is present


def test_bad_configurations_are_refused() -> None:
    for bad in (
        {"device_filters": 0},
        {"num_classes": 1},
        {"edge_filters": -1},
        {"edge_precision": "bit"},
        {"exit_rule": "entropi"},
        {"feature_aggregator": "sum"},
    ):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            DDNNConfig(**{"num_views": 2, "num_classes": 3, "view_shape": (1, 8, 8), **bad})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='nearest is "max_pool"'):
        combine("maxpool", torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
