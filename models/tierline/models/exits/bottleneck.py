"""A learned bottleneck at an edge: an encoder below the cut, a decoder above it, distilled from the network itself.

Student and teacher are the same frozen network, the student with decode(encode(x)) in place of the tensor x at the
edge. The encoder is a 3x3 convolution to few channels, its stride shrinks the sides; the decoder a transposed
convolution of that stride, batch-norm, ReLU, and a 3x3 convolution. What crosses is trained to bear rounding to
2 ** bits values between a row's smallest and largest, as the codec `affine` does, with gradients passed straight
through:

    L = |x' - x|^2 / |x|^2 + KL(teacher(image) || student(image))

Matsubara et al., "SC2 benchmark: supervised compression for split computing", TMLR 2023 (CR + BQ and the feature and
logit distillation of section 3). Deviations: no entropy model, so the rate is set by channels, stride and bits instead
of a term of the loss; one stage, the network above stays frozen; the squared error is that of the edge alone, as a
share. Without a torch module, only the first term is there.
Status: checked (bytes and accuracy on handwritten digits).

Shapes: B batch, C H W of the edge's tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from tierline.core.bundle import Preprocess
from tierline.core.errors import BundleError, ConfigError
from tierline.core.preprocess import Preprocessor
from tierline.models.data.dataset import Dataset
from tierline.models.exits.attach import Edges
from tierline.models.exits.onnx_layers import chain_model
from tierline.models.exits.tap import Tap
from tierline.models.graph import Network, network_of
from tierline.models.train.exits import FINAL, ExitProgress, ExitTraining, fit

ENCODED, DECODED = "encoded", "decoded"
"""What follows an edge's name in those of the new tensors: `EDGE/encoded` is where to cut."""
TEACHER = "teacher"


class Bottleneck(nn.Module):
    """Takes and gives (B, C, H, W). Raises ConfigError for a shape or stride that does not fit."""

    def __init__(self, shape: tuple[int, ...], channels: int, stride: int, bits: int) -> None:
        super().__init__()
        if len(shape) != 3 or channels < 1 or stride < 1 or shape[1] % stride or shape[2] % stride:
            raise ConfigError(
                f"bottleneck: {channels} channels and stride {stride} do not fit an edge of "
                f"{'x'.join(map(str, shape))}; it must be C x H x W with sides that divide by the stride"
            )
        if not 1 <= bits <= 16:
            raise ConfigError(f"bottleneck: bits = {bits} must be 1 to 16")
        self.code_shape = (channels, shape[1] // stride, shape[2] // stride)
        self.levels = 2**bits - 1
        self.encoder = nn.Sequential(nn.Conv2d(shape[0], channels, 3, stride=stride, padding=1))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(channels, shape[0], stride, stride=stride, bias=False),
            nn.BatchNorm2d(shape[0]),
            nn.ReLU(),
            nn.Conv2d(shape[0], shape[0], 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self._rounded(self.encoder(x)))
        return decoded

    def _rounded(self, code: Tensor) -> Tensor:
        with torch.no_grad():
            low, high = torch.aminmax(code.flatten(1), dim=1)
            step = ((high - low) / self.levels).clamp_min(1e-12)[:, None, None, None]
            low = low[:, None, None, None]
            error = torch.round((code - low) / step) * step + low - code
        rounded: Tensor = code + error
        return rounded


def learn_bottleneck(
    network: Network,
    edge: str,
    data: Dataset,
    preprocess: Preprocess,
    how: ExitTraining,
    *,
    channels: int,
    stride: int = 1,
    bits: int = 8,
    net: nn.Module | None = None,
    progress: Callable[[ExitProgress], None] | None = None,
    checkpoint: Path | None = None,
) -> Network:
    """Train a bottleneck at `edge` on the training split, and put it into the network. `net` is the network's torch
    module, where there is one; it is not changed. Raises BundleError, ConfigError."""
    if edge not in {point.name for point in network.cut_points()} - {network.input}:
        raise BundleError(
            f"{network.where}: {edge!r} alone does not separate it; `tierline model cuts` lists what does"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        neck = Bottleneck(network.tensors[edge].shape, channels, stride, bits)
    graph = Edges(network, [edge])
    tap = None
    if net is not None:
        tap = Tap(copy.deepcopy(net), network.tensors[network.input].shape, [edge])
        tap.check(graph)
        tap.requires_grad_(False)

    def run(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits of teacher and student, and the error at the edge."""
        found = {name: torch.from_numpy(array) for name, array in graph(images).items()}
        x, teacher = found[edge], found[network.output]
        decoded = neck(x)
        error = (decoded - x).square().mean() / x.square().mean().clamp_min(1e-12)
        student = teacher if tap is None else tap.eval()(images, {edge: lambda _: decoded})[0]
        return {TEACHER: teacher, FINAL: student}, error

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        logits, error = run(images)
        teacher, student = (log_softmax(logits[name].float(), dim=1) for name in (TEACHER, FINAL))
        return error + kl_div(student, teacher, reduction="batchmean", log_target=True)

    def forward(images: Tensor) -> dict[str, Tensor]:
        return run(images)[0]

    fit(neck, forward, loss_of, Preprocessor(preprocess), data.train, data.validation, how, progress, checkpoint)
    graph.close()
    return insert(network, edge, neck)


def insert(network: Network, edge: str, neck: Bottleneck) -> Network:
    """The network with a bottleneck at an edge: what read the edge reads what was decoded."""
    shape = network.tensors[edge].shape
    encoded, decoded = f"{edge}/{ENCODED}", f"{edge}/{DECODED}"
    like = network.model
    parts = [
        chain_model(list(neck.encoder), ENCODED, (edge, shape), (encoded, neck.code_shape), like),
        chain_model(list(neck.decoder), DECODED, (encoded, neck.code_shape), (decoded, shape), like),
    ]
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    at = next(i for i, node in enumerate(model.graph.node) if edge in node.output)
    nodes = list(model.graph.node)
    for node in nodes[at + 1 :]:
        node.input[:] = [decoded if name == edge else name for name in node.input]
    new: list[Any] = []
    for raw, prefix in zip(parts, (ENCODED, DECODED), strict=True):
        part = onnx.compose.add_prefix_graph(onnx.load_model_from_string(raw).graph, f"{edge}/{prefix}/")
        public = {part.input[0].name: new[-1].output[0] if new else edge, part.output[0].name: f"{edge}/{prefix}"}
        for node in part.node:
            node.input[:] = [public.get(name, name) for name in node.input]
            node.output[:] = [public.get(name, name) for name in node.output]
            new.append(node)
        model.graph.initializer.extend(part.initializer)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: at + 1], *new, *nodes[at + 1 :]])
    return network_of(model, network.where)
