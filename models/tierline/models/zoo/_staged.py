"""Networks that are a chain of layers, so that they can be cut between any two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

Stage = tuple[str, Callable[[Tensor], Tensor]]
"""The name of a layer's submodule, and what it does to the tensor from the layer before."""


class Staged(nn.Module):
    """Runs its stages in order; the last one's output is called `logits`, and what it reads `features`."""

    def stages(self) -> Sequence[Stage]:
        """One per layer with parameters, in the order of the parameters."""
        raise NotImplementedError

    def forward(self, x: Tensor, *, first: int = 0, stop: int | None = None) -> dict[str, Tensor]:
        """Stages `first` to before `stop`. A Section that ends before the last stage puts out `features` only."""
        stages = [run for _, run in self.stages()]
        stop = len(stages) if stop is None else stop
        for run in stages[first : min(stop, len(stages) - 1)]:
            x = run(x)
        return {"features": x, "logits": stages[-1](x)} if stop == len(stages) else {"features": x}
