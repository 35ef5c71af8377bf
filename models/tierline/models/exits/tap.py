"""A torch module that also shows the tensors at some of its edges, so that exits can be trained there.

Edges carry the names that the module's ONNX graph gives them, which is how a user names them. The module is captured as
it trains, with torch.export; what was captured shares its parameters and buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from tierline.core.catalog import nearest
from tierline.core.errors import BundleError
from tierline.core.types import Arrays
from tierline.models.torch_export import LogitsOnly

_TOLERANCE = 1e-3
"""Of an edge's largest value, between torch and ONNX."""


class Tap(nn.Module):
    """Takes images, gives the logits and the tensors at `edges`. Raises BundleError for what cannot be captured."""

    def __init__(self, net: nn.Module, input_shape: tuple[int, ...], edges: Sequence[str]) -> None:
        super().__init__()
        self.net = LogitsOnly(net)
        self._edges = tuple(edges)
        self._input_shape = input_shape
        was_training = net.training
        self._by_mode = {}
        for training in (True, False):
            self.net.train(training)
            self._by_mode[training] = _capture(self.net, input_shape)
        self.net.train(was_training)
        names = [node.name for node in self._by_mode[True].graph.nodes if node.op == "call_function"]
        for edge in self._edges:
            if edge not in names:
                raise BundleError(
                    f"{type(net).__name__}: torch has no tensor {edge!r} to train an exit at{nearest(edge, names)}; "
                    "exits trained with their network sit behind its relu and pooling layers"
                )

    def forward(
        self, images: Tensor, change: Mapping[str, Callable[[Tensor], Tensor]] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`change` by edge is what the network goes on with instead of the tensor shown."""
        seen = _Seen(self._by_mode[self.training], self._edges, change or {})
        logits: Tensor = seen.run(images)
        return logits, seen.found

    @torch.no_grad()
    def check(self, graph: Callable[[Tensor], Arrays]) -> None:
        """Compare with what the ONNX graph computes. Raises BundleError where a name means another tensor there."""
        self.eval()
        probe = torch.linspace(-1, 1, 2 * math.prod(self._input_shape)).reshape(2, *self._input_shape)
        found, expected = self(probe)[1], graph(probe)
        for edge in self._edges:
            own, other = found[edge], torch.from_numpy(expected[edge])
            if own.shape != other.shape or (own - other).abs().max() > _TOLERANCE * (1e-6 + other.abs().max()):
                raise BundleError(
                    f"{type(self.net.net).__name__}: {edge!r} is another tensor in torch than in its ONNX graph; name "
                    "the relu or pooling layer next to it"
                )


def _capture(net: nn.Module, input_shape: tuple[int, ...]) -> torch.fx.GraphModule:
    try:
        program = torch.export.export(
            net, (torch.zeros(2, *input_shape),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        module: torch.fx.GraphModule = program.module()
    except Exception as error:  # many classes, most of them private
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{type(net).__name__}: torch cannot capture it for training ({reason[:160]})") from error
    return module


class _Seen(Interpreter):
    """Runs a graph and keeps some of its tensors, or goes on with others."""

    def __init__(
        self, module: torch.fx.GraphModule, wanted: Sequence[str], change: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> None:
        super().__init__(module)
        self._wanted = frozenset(wanted)
        self._change = change
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted:
            self.found[n.name] = value
            if n.name in self._change:
                return self._change[n.name](value)
        return value
