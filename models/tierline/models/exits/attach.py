"""Trains exit heads at edges of a network: on what its ONNX graph computes, or jointly with its torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from tierline.core import catalog
from tierline.core.bundle import Preprocess
from tierline.core.errors import BundleError
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Engine
from tierline.core.types import Arrays
from tierline.models.data.dataset import Dataset
from tierline.models.exits.heads import Head
from tierline.models.exits.tap import Tap
from tierline.models.graph import Network, network_of
from tierline.models.torch_export import export
from tierline.models.train.exits import FINAL, ExitProgress, ExitTraining, Forward, Loss, fit, joint_loss


class Edges:
    """What a network computes at some of its edges, by its ONNX graph."""

    def __init__(self, network: Network, edges: Sequence[str], engine: str = "onnxruntime") -> None:
        model = onnx.ModelProto()
        model.CopyFrom(network.model)
        del model.graph.output[:]
        for name in dict.fromkeys((*edges, network.output)):
            shape: list[str | int | None] = ["batch", *network.tensors[name].shape]
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        raw = model.SerializeToString()
        self._engine: Engine = catalog.make("engine", engine, model=raw, name=network.where, threads=1)
        self._input = network.input

    def __call__(self, images: Tensor) -> Arrays:
        return self._engine.run({self._input: images.contiguous().numpy()})

    def close(self) -> None:
        self._engine.close()


class JointNetwork(nn.Module):
    """A torch module and its heads. Gives logits (B, K) by exit: edges, then `final`."""

    def __init__(self, tap: Tap, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.tap = tap
        self.edges = tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits, found = self.tap(images)
        exits = {edge: head(found[edge]) for edge, head in zip(self.edges, self.heads, strict=True)}
        return {**exits, FINAL: logits}


def make_heads(network: Network, edges: Sequence[str], kind: str, num_classes: int) -> dict[str, Head]:
    """New heads by edge, from the image upwards; weights are drawn from torch's random stream. Raises BundleError."""
    order = [point.name for point in network.cut_points() if point.name in edges and point.name != network.input]
    missing = [edge for edge in edges if edge not in order]
    if missing:
        raise BundleError(
            f"{network.where}: no exit can sit at {missing[0]!r}; a single tensor has to separate the network there "
            "(`tierline model cuts`)"
        )
    return {edge: Head(kind, network.tensors[edge].shape, num_classes) for edge in order}


def attach(
    network: Network,
    heads: Mapping[str, Head],
    data: Dataset,
    preprocess: Preprocess,
    how: ExitTraining,
    *,
    net: nn.Module | None = None,
    progress: Callable[[ExitProgress], None] | None = None,
    checkpoint: Path | None = None,
) -> Network:
    """Train the heads in place on the training split, the network frozen; jointly with `net`, its torch module, where
    that is given. Returns the network with the weights that it then has. Raises BundleError, ConfigError."""
    preprocessor = Preprocessor(preprocess)
    graph = Edges(network, list(heads))
    splits = preprocessor, data.train, data.validation
    if net is None:
        learned = nn.ModuleList(heads.values())

        def forward(images: Tensor) -> dict[str, Tensor]:
            found = {name: torch.from_numpy(array) for name, array in graph(images).items()}
            return {**{edge: head(found[edge]) for edge, head in heads.items()}, FINAL: found[network.output]}

        fit(learned, forward, loss_of(forward, how), *splits, how, progress, checkpoint)
        graph.close()
        return network
    shape = network.tensors[network.input].shape
    tap = Tap(net, shape, list(heads))
    tap.check(graph)
    graph.close()
    joint = JointNetwork(tap, heads)
    fit(joint, joint, loss_of(joint, how), *splits, how, progress, checkpoint)
    return network_of(onnx.load_model_from_string(export(net, shape)), network.where)


def loss_of(forward: Forward, how: ExitTraining) -> Loss:
    """The weighted sum over all exits, of images."""
    return lambda images, labels: joint_loss(forward(images), labels, how.exit_weight)
