"""Networks of the zoo: as many parameters as their papers say, and shapes for images of any size they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tierline.core import catalog

GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)
PAPER_VGG = {"hidden": (4096, 4096), "norm": False}


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "num_parameters"),
    [
        ("lenet", GREY, 10, {}, 61_706),
        ("resnet20", COLOUR, 10, {}, 269_722),
        ("vgg11", LARGE, 1000, PAPER_VGG, 132_863_336),
        ("vgg11", COLOUR, 10, {}, 9_231_114),
        ("mobile", LARGE, 1000, {"width": 1.0, "reduction": 5}, 4_231_976),
    ],
)
def test_parameters_as_published(
    name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any], num_parameters: int
) -> None:
    with torch.device("meta"):  # shapes without memory
        net = catalog.make("model", name, input_shape=shape, num_classes=classes, **options)
    assert sum(p.numel() for p in net.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("name", "shape"), [("lenet", (3, 20, 24)), ("resnet20", GREY), ("vgg11", COLOUR), ("mobile", COLOUR)]
)
def test_outputs_of_a_batch(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        net = catalog.make("model", name, input_shape=shape, num_classes=7)
        found = net(torch.zeros(5, *shape))
    assert {key: tuple(value.shape)[:1] for key, value in found.items()} == {"features": (5,), "logits": (5,)}
    assert found["logits"].shape[1] == 7
    assert found["features"].shape[1] == net.out.in_features


@pytest.mark.parametrize(("reduction", "side"), [(5, 1), (3, 4), (0, 32)])
def test_mobile_halves_as_often_as_asked(reduction: int, side: int) -> None:
    with torch.device("meta"):
        net = catalog.make("model", "mobile", input_shape=COLOUR, num_classes=2, reduction=reduction)
        assert net.convolutions(torch.zeros(2, *COLOUR)).shape[2:] == (side, side)
