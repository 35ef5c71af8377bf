"""Exit heads: what turns the tensor at an edge of a network into logits.

`linear`: means over tiles, no more than 4 in each direction, then one dense layer; of a flat tensor the dense layer
alone. `conv` or `conv:W`: two 3x3 convolutions of stride 2 with W and 2 W filters, each with batch-norm and ReLU, then
as `linear`; W is by default the edge's own number of channels, held between 8 and 64.
Convolutions and a dense layer as in Teerapittayanon et al., "BranchyNet: fast inference via early exiting from deep
neural networks", ICPR 2016; the pooling to 4x4 before the dense layer as in Kaya et al., "Shallow-deep networks",
ICML 2019, with means only.

Shapes: B batch, C channels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError

KINDS = ("linear", "conv")
_NARROWEST, _WIDEST = 8, 64
_TILES = 4


class Head(nn.Module):
    """Takes (B, C, H, W) or (B, C), gives logits (B, K). Raises ConfigError for a kind or shape it cannot have."""

    def __init__(self, kind: str, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        name, colon, text = kind.partition(":")
        if name not in KINDS:
            raise ConfigError(f"head {kind!r}: no such head{nearest(name, KINDS)}; there are {', '.join(KINDS)}")
        if colon and (name != "conv" or not text.isdigit() or not int(text)):
            raise ConfigError(f"head {kind!r}: write linear, conv, or conv:W for W filters")
        if len(shape) not in (1, 3):
            raise ConfigError(f"head {kind!r}: its edge is {'x'.join(map(str, shape))}; it must be C x H x W or flat")
        filters, rows, columns = (*shape, 1, 1)[:3]
        layers: list[nn.Module] = []
        if name == "conv" and len(shape) == 3:
            width = int(text) if colon else min(max(filters, _NARROWEST), _WIDEST)
            for wanted in (width, 2 * width):
                layers.append(nn.Conv2d(filters, wanted, 3, stride=2, padding=1, bias=False))
                layers += [nn.BatchNorm2d(wanted), nn.ReLU()]
                filters, rows, columns = wanted, (rows + 1) // 2, (columns + 1) // 2
        tile = -(-rows // _TILES), -(-columns // _TILES)
        if max(tile) > 1:
            layers.append(nn.AvgPool2d(tile))
            rows, columns = rows // tile[0], columns // tile[1]
        self.num_classes = num_classes
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * rows * columns, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits_BK: Tensor = self.layers(x)
        return logits_BK
