"""A DDNN cut at its links: what each node runs, for a `Tape` or a `LocalTrainer` of its own.

Parameters keep the names that they have in the whole DDNN. Shapes: N views, B batch, K classes, C H W of a feature.
"""

from __future__ import annotations

from torch import Tensor, nn

from tierline.models.aggregate import combine
from tierline.models.ddnn import DDNN


class DeviceTier(nn.Module):
    """The Section of one view, with its exit."""

    def __init__(self, whole: DDNN, view: int) -> None:
        super().__init__()
        self._section = [whole.device(view)]  # in a list, so that it is registered once, under the DDNN's name
        self.devices = nn.ModuleDict({str(view): whole.device(view)})

    def forward(self, view_BCHW: Tensor) -> dict[str, Tensor]:
        features, logits = self._section[0](view_BCHW)
        return {"features": features, "logits": logits}


class RootTier(nn.Module):
    """Everything above the devices: the local exit, the edge where there is one, and the cloud."""

    def __init__(self, whole: DDNN) -> None:
        super().__init__()
        self.config = whole.config
        self.head, self.edge, self.cloud = whole.head, whole.edge, whole.cloud

    def forward(self, features: Tensor, logits: Tensor, present: Tensor) -> dict[str, Tensor]:
        """features (N, B, C, H, W), logits (N, B, K), present bool (N, B) -> logits (B, K) of every exit."""
        local = combine(self.config.local_aggregator, logits, present)
        outputs = {"local/logits": local if self.head is None else self.head(local)}
        x = combine(self.config.feature_aggregator, features, present)
        if self.edge is not None:
            x, outputs["edge/logits"] = self.edge(x)
        outputs["cloud/logits"] = self.cloud(x)[1]
        return outputs
