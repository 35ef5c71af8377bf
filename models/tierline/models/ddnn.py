"""DDNN: one network cut over devices, an optional edge and a cloud, with an exit at every level.

Teerapittayanon, McDanel, Kung: Distributed Deep Neural Networks over the Cloud, the Edge and End Devices (ICDCS 2017),
sections III and IV. Every device has its own Section; the logits of the devices are fused into the local exit, their
features into the input of the next level. Deviations: the edge level is trained, not only drawn; precision can be
chosen per tier; absent views are masked instead of standing for zero images. BranchyNet (ICPR 2016) is the case of
one view.

Shapes: N views, B batch, K classes, C H W of one view.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tierline.core.catalog import names, nearest
from tierline.core.errors import ConfigError
from tierline.models.aggregate import NAMES, combine, fused_channels
from tierline.models.layers.blocks import FC, ConvP, pooled

PRECISIONS = ("binary", "bits", "full")


@dataclass(frozen=True)
class DDNNConfig:
    """Widths, depths, precision and fusion of a DDNN. Raises ConfigError for sizes that make no network."""

    num_views: int
    num_classes: int
    view_shape: tuple[int, int, int]
    """C, H, W of one view's input."""
    device_filters: int = 8
    device_blocks: int = 1
    edge_filters: int = 16
    """0: no edge level, as in the measured system of the paper."""
    edge_blocks: int = 1
    cloud_filters: int = 32
    cloud_blocks: int = 2
    device_precision: str = "binary"
    """`binary`: weights and features of +-1; `bits`: real weights, features of +-1; `full`: all real."""
    edge_precision: str = "bits"
    cloud_precision: str = "full"
    binary_exits: bool = False
    """Weights of +-1 in the exits of `binary` tiers too, as in the paper; real ones are worth several points."""
    local_aggregator: str = "max_pool"
    feature_aggregator: str = "concat"
    exit_rule: str = "entropy"

    def __post_init__(self) -> None:
        for name, valid in (
            ("device_precision", PRECISIONS),
            ("edge_precision", PRECISIONS),
            ("cloud_precision", PRECISIONS),
            ("local_aggregator", NAMES),
            ("feature_aggregator", NAMES),
            ("exit_rule", names("exit")),
        ):
            if getattr(self, name) not in valid:
                raise ConfigError(f"model: {name} = {getattr(self, name)!r}{nearest(getattr(self, name), valid)}")
        positive = ("num_views", "device_filters", "device_blocks", "cloud_filters", "cloud_blocks", "edge_blocks")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"model: {name} = {getattr(self, name)} must be at least 1")
        if self.num_classes < 2 or self.edge_filters < 0 or min(self.view_shape) < 1:
            raise ConfigError(
                f"model: num_classes = {self.num_classes} must be at least 2, edge_filters = {self.edge_filters} "
                f"at least 0, view_shape = {self.view_shape} positive"
            )

    @property
    def has_edge(self) -> bool:
        return self.edge_filters > 0

    @property
    def exits(self) -> list[str]:
        """Names of the exits from the sensor upwards."""
        return ["local", "edge", "cloud"] if self.has_edge else ["local", "cloud"]


class Section(nn.Module):
    """Blocks of one tier and the exit at their end."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        filters: int,
        blocks: int,
        *,
        stride: int,
        num_classes: int,
        precision: str,
        binary_exit: bool,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.input_shape = shape
        self.num_classes = num_classes
        self.bit_features = precision != "full"
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(ConvP(channels, filters, stride=stride, precision=precision))
            channels, height, width = filters, pooled(height, stride), pooled(width, stride)
        self.feature_shape = (channels, height, width)
        self.exit = FC(channels * height * width, num_classes, binary=binary_exit and precision == "binary")

    def conv_blocks(self) -> list[ConvP]:
        return [block for block in self.blocks if isinstance(block, ConvP)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input (B, C, H, W) -> feature (B, *feature_shape), logits (B, K)."""
        for block in self.blocks:
            x = block(x)
        return x, self.exit(x)


class DDNN(nn.Module):
    """The whole hierarchy as one differentiable network."""

    def __init__(self, config: DDNNConfig) -> None:
        super().__init__()
        self.config = config
        views, classes = config.num_views, config.num_classes
        self.devices = nn.ModuleList(self._section("device", config.view_shape, stride=2) for _ in range(views))
        channels, height, width = self.device(0).feature_shape
        shape = (fused_channels(config.feature_aggregator, channels, views), height, width)
        concat = config.local_aggregator == "concat"
        self.head = (
            FC(views * classes, classes, binary=config.binary_exits and config.device_precision == "binary")
            if concat
            else None
        )
        self.edge: Section | None = None
        if config.has_edge:
            self.edge = self._section("edge", shape, stride=1)
            shape = self.edge.feature_shape
        self.cloud = self._section("cloud", shape, stride=1)

    def _section(self, tier: str, shape: tuple[int, int, int], *, stride: int) -> Section:
        config = self.config
        return Section(
            shape,
            getattr(config, f"{tier}_filters"),
            getattr(config, f"{tier}_blocks"),
            stride=stride,
            num_classes=config.num_classes,
            precision=getattr(config, f"{tier}_precision"),
            binary_exit=config.binary_exits,
        )

    def device(self, view: int) -> Section:
        section = self.devices[view]
        assert isinstance(section, Section)
        return section

    def forward(self, views_NBCHW: Tensor, present_NB: Tensor, reachable_NB: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of every exit: `device` (N, B, K); `local`, `edge` where there is one, and `cloud` (B, K).

        `present_NB` says which views exist, `reachable_NB` (default: the same) which of them arrive at the
        aggregators: a device cut off still sees and learns. Logits of a device without a view are zeros.
        """
        arrives_NB = present_NB if reachable_NB is None else present_NB & reachable_NB
        parts = [self._run_device(i, views_NBCHW[i], present_NB[i]) for i in range(self.config.num_views)]
        feature_NB = torch.stack([feature for feature, _ in parts])
        logits_NBK = torch.stack([logits for _, logits in parts])
        local = combine(self.config.local_aggregator, logits_NBK, arrives_NB)
        outputs = {"device": logits_NBK, "local": local if self.head is None else self.head(local)}
        x = combine(self.config.feature_aggregator, feature_NB, arrives_NB)
        if self.edge is not None:
            x, outputs["edge"] = self.edge(x)
        outputs["cloud"] = self.cloud(x)[1]
        return outputs

    def _run_device(self, view: int, x_BCHW: Tensor, present_B: Tensor) -> tuple[Tensor, Tensor]:
        """Feature and logits; rows without a view are kept out, so that they cannot bend the batch statistics."""
        section = self.device(view)
        rows = present_B.nonzero().flatten()
        # Batch-norm cannot learn from a single row; then the batch goes through whole and the masks do the rest.
        if len(rows) == len(x_BCHW) or (self.training and len(rows) < 2):
            feature, logits = section(x_BCHW)
            return feature, logits * present_B[:, None]
        some_feature, some_logits = section(x_BCHW[rows])
        feature = x_BCHW.new_zeros(len(x_BCHW), *section.feature_shape).index_copy(0, rows, some_feature)
        logits = x_BCHW.new_zeros(len(x_BCHW), self.config.num_classes).index_copy(0, rows, some_logits)
        return feature, logits
