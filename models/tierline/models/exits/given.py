"""What a user names as a model: an ONNX file, a torch module, a network of the zoo, or one that we trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from tierline.core import catalog
from tierline.core.bundle import Preprocess
from tierline.core.catalog import nearest
from tierline.core.errors import BundleError, ConfigError
from tierline.models.data.dataset import Dataset
from tierline.models.exits import trained
from tierline.models.exits.attach import make_heads
from tierline.models.exits.heads import Head
from tierline.models.graph import Network, network_of, read_network
from tierline.models.own import preprocess_of
from tierline.models.torch_export import export, load_module
from tierline.models.views import preprocess_for


@dataclass(frozen=True)
class Given:
    """A network to give exits, cuts or a bottleneck."""

    network: Network
    preprocess: Preprocess
    net: nn.Module | None = None
    """None for an ONNX file."""
    heads: dict[str, Head] = field(default_factory=dict)
    """Exits that come along, or new ones."""


def read_given(
    model: str,
    data: Dataset,
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    options: Mapping[str, Any] | None = None,
    exits: Sequence[str] = (),
    head: str = "conv",
    seed: int = 0,
) -> Given:
    """`FILE.onnx`, `module:Net`, a network of the zoo, or the name of a trained one.

    Those of the zoo take `options`, and new weights by `seed`; so do new heads at the edges `exits`, which replace
    those that come along.

    Trained networks and those of the zoo know their preprocessing; for others `mean` and `std` say it. Images have the
    data's size unless an ONNX file says another. Raises BundleError, ConfigError, DataError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = _read(model, data, mean, std, options or {})
        if not exits:
            return given
        return replace(given, heads=make_heads(given.network, exits, head, len(data.labels)))


def _read(model: str, data: Dataset, mean: Sequence[float], std: Sequence[float], options: Mapping[str, Any]) -> Given:
    known = trained.names()
    if model in known:
        found = trained.load_trained(model)
        if tuple(found.recipe.labels) != tuple(data.labels):
            raise ConfigError(f"{model}: was trained for {found.recipe.data}; data {data.name!r} has other labels")
        network = _exported(found.net, found.recipe.input_shape, model)
        return Given(network, found.recipe.preprocess, found.net, found.heads)
    images = data.train.images
    if images.ndim == 5:
        raise ConfigError(f"data {data.name!r}: has several views per sample; these networks take one image")
    if model in catalog.names("model"):
        preprocess = preprocess_for(data, 1)
        shape = (preprocess.channels, *preprocess.size)
        net = trained.zoo_net(model, shape, len(data.labels), options)
        return Given(_exported(net, shape, model), preprocess, net)
    if options:
        raise ConfigError(f"{model}: model options are for networks of the zoo: {', '.join(catalog.names('model'))}")
    if ":" not in model or Path(model).exists():
        if not Path(model).exists() and "." not in model:
            choices = [*known, *catalog.names("model")]
            raise ConfigError(f"model {model!r}: neither a file nor in the zoo{nearest(model, choices)}")
        network = read_network(Path(model))
        return _checked(Given(network, preprocess_of(network, None, mean, std)), data)
    net = load_module(model)
    shape = (1 if images.ndim == 3 else images.shape[3], images.shape[1], images.shape[2])
    network = _exported(net, shape, model)
    return _checked(Given(network, preprocess_of(network, None, mean, std), net), data)


def _checked(given: Given, data: Dataset) -> Given:
    shape = given.network.tensors[given.network.output].shape
    if shape != (len(data.labels),):
        raise BundleError(
            f"{given.network.where}: its output is (batch, {', '.join(map(str, shape))}), the data has "
            f"{len(data.labels)} labels ({', '.join(data.labels[:5])}...)"
        )
    return given


def _exported(net: nn.Module, shape: tuple[int, ...], where: str) -> Network:
    return network_of(onnx.load_model_from_string(export(net, shape)), where)
