"""A learned bottleneck: fewer bytes at a cut, for a stated loss of accuracy, and the rest of the network untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exit_nets import digits, graph_of, make_net

from tierline.core import catalog
from tierline.core.bundle import Preprocess
from tierline.core.coding import codec_for
from tierline.core.errors import BundleError, ConfigError
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Tier
from tierline.models.evaluate import run_bundle
from tierline.models.exits.attach import attach, make_heads
from tierline.models.exits.bottleneck import Bottleneck, insert, learn_bottleneck
from tierline.models.exits.build import build
from tierline.models.exits.derive import Stage, derive
from tierline.models.graph import Network
from tierline.models.train.exits import ExitTraining, batch
from tierline.models.views import prepare, preprocess_for

HOW = ExitTraining(epochs=6, batch_size=32, learning_rate=0.05)


@pytest.fixture(scope="module")
def teacher() -> tuple[torch.nn.Module, Network, Preprocess]:
    """The small network, trained."""
    net, data = make_net(), digits()
    preprocess = preprocess_for(data, 1)
    return net, attach(graph_of(net), {}, data, preprocess, HOW, net=net), preprocess


def test_fewer_bytes_cross_at_a_stated_accuracy(
    teacher: tuple[torch.nn.Module, Network, Preprocess], tmp_path: Path
) -> None:
    net, network, preprocess = teacher
    data = digits()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    narrow = learn_bottleneck(network, "max_pool2d", data, preprocess, HOW, channels=2, stride=1, bits=4, net=net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    at = "max_pool2d/encoded"
    bundle = build(
        narrow,
        {},
        tmp_path / "a",
        name="narrow",
        labels=data.labels,
        preprocess=preprocess,
        validation=data.validation,
        cuts=["max_pool2d", at],
        stages=[Stage(at, Tier.DEVICE, codec="affine:bits=4"), Stage("output", Tier.CLOUD)],
    )
    wide = derive(bundle, [Stage("max_pool2d", Tier.DEVICE), Stage("output", Tier.CLOUD)], tmp_path / "b")
    views = prepare(data.test, preprocess)
    logits = run_bundle(bundle, views).logits["final"]
    engine = catalog.make("engine", "onnxruntime", model=network.model.SerializeToString(), name="t", threads=1)
    full = engine.run({network.input: views.images[0]})[network.output]
    own, theirs = (float((x.argmax(1) == data.test.labels).mean()) for x in (logits, full))
    assert theirs > 0.9 and own > theirs - 0.05
    feature = bundle.manifest.levels[0].sections["view-0"].outputs["feature"].spec
    whole = wide.manifest.levels[0].sections["view-0"].outputs["feature"].spec
    assert (feature.shape, whole.shape) == ((2, 4, 4), (16, 4, 4))
    sent = codec_for("affine:bits=4").size_bounds(feature)[1]
    assert sent * 32 < codec_for("raw").size_bounds(whole)[1]


def test_without_a_torch_module_the_edge_alone_is_learned(
    teacher: tuple[torch.nn.Module, Network, Preprocess],
) -> None:
    network, preprocess = teacher[1:]
    data, seen = digits(), []
    learn_bottleneck(network, "max_pool2d", data, preprocess, HOW, channels=8, stride=2, progress=seen.append)
    assert seen[-1].loss < 0.5 * seen[0].loss


def test_what_is_inserted_computes_what_torch_computes(
    teacher: tuple[torch.nn.Module, Network, Preprocess],
) -> None:
    network, preprocess = teacher[1:]
    torch.manual_seed(2)
    neck = Bottleneck((16, 4, 4), 3, 2, 16)
    neck.train()(torch.randn(30, 16, 4, 4))
    neck.eval()
    changed = insert(network, "max_pool2d", neck)
    assert changed.tensors["max_pool2d/encoded"].shape == (3, 2, 2) and changed.output == network.output
    images = batch(Preprocessor(preprocess), digits().test, np.arange(20))
    names = [network.input, "max_pool2d", "max_pool2d/encoded", "max_pool2d/decoded"]
    from tierline.models.exits.attach import Edges

    found = Edges(changed, names[1:])(images)
    x = torch.from_numpy(found["max_pool2d"])
    assert np.array_equal(found["max_pool2d"], Edges(network, names[1:2])(images)["max_pool2d"])
    assert np.allclose(found["max_pool2d/encoded"], neck.encoder(x).detach().numpy(), atol=1e-5)
    decoded = neck.decoder(torch.from_numpy(found["max_pool2d/encoded"])).detach().numpy()
    assert np.allclose(found["max_pool2d/decoded"], decoded, atol=1e-5)


def test_rounding_is_that_of_the_codec() -> None:
    torch.manual_seed(0)
    neck, x = Bottleneck((4, 2, 2), 4, 1, 4), torch.randn(5, 4, 2, 2)
    codec = codec_for("affine:bits=4")
    rows = x.numpy()
    payload = codec.encode(rows)
    from tierline.core.types import TensorSpec

    decoded = codec.decode(payload, TensorSpec("float32", (4, 2, 2)))
    assert np.allclose(neck._rounded(x).numpy(), decoded, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "channels", "stride", "bits"),
    [((64,), 1, 1, 8), ((4, 5, 4), 1, 2, 8), ((4, 4, 4), 0, 1, 8), ((4, 4, 4), 1, 1, 17)],
)
def test_bottlenecks_that_do_not_fit(shape: tuple[int, ...], channels: int, stride: int, bits: int) -> None:
    with pytest.raises(ConfigError, match="bottleneck"):
        Bottleneck(shape, channels, stride, bits)


def test_edges_that_separate_nothing(teacher: tuple[torch.nn.Module, Network, Preprocess]) -> None:
    with pytest.raises(BundleError, match="does not separate"):
        learn_bottleneck(teacher[1], "nowhere", digits(), teacher[2], HOW, channels=1)
    with pytest.raises(BundleError, match="no exit can sit"):
        make_heads(teacher[1], ["image"], "linear", 10)
