"""Networks that we trained, with their exits: weights in float16, one `.npz` each in `weights`.

How each was trained, and how well it does, stands in `docs/own-model.md`. Batch-norm's
statistics are kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from tierline.core import catalog
from tierline.core.bundle import Preprocess
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError
from tierline.core.types import Array
from tierline.models.exits.heads import Head

FOLDER = Path(__file__).parent / "weights"
_RECIPE, _NET, _HEAD = "recipe", "net/", "head/"


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the weights belong to."""

    zoo: str
    """Its name in the catalogue."""
    options: dict[str, Any]
    input_shape: tuple[int, ...]
    labels: list[str]
    preprocess: Preprocess
    data: str
    heads: dict[str, str]
    """Kind of head by edge, from the image upwards."""
    shapes: dict[str, tuple[int, ...]]
    """Of the tensor at each of these edges."""


@dataclass(frozen=True)
class Trained:
    """A network ready to be exported."""

    recipe: Recipe
    net: nn.Module
    heads: dict[str, Head]


def names(folder: Path = FOLDER) -> list[str]:
    """Of all networks with weights."""
    return sorted(path.stem for path in folder.glob("*.npz"))


def load_trained(name: str, folder: Path = FOLDER) -> Trained:
    """Raises ConfigError for a name without weights."""
    if name not in names(folder):
        raise ConfigError(f"zoo: no trained weights {name!r}{nearest(name, names(folder))}; `tierline model zoo` lists")
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        recipe = msgspec.json.decode(arrays[_RECIPE].tobytes(), type=Recipe)
        net: nn.Module = zoo_net(recipe.zoo, recipe.input_shape, len(recipe.labels), recipe.options)
        heads = {e: Head(kind, recipe.shapes[e], len(recipe.labels)) for e, kind in recipe.heads.items()}
        _fill(net, arrays, _NET)
        for index, head in enumerate(heads.values()):
            _fill(head, arrays, f"{_HEAD}{index}/")
    return Trained(recipe, net.eval(), heads)


def save_trained(path: Path, recipe: Recipe, net: nn.Module, heads: Sequence[Head]) -> None:
    """Write what `load_trained` reads."""
    arrays = {_RECIPE: np.frombuffer(msgspec.json.encode(recipe), np.uint8), **_state(net, _NET)}
    for index, head in enumerate(heads):
        arrays.update(_state(head, f"{_HEAD}{index}/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _state(module: nn.Module, prefix: str) -> dict[str, Array]:
    kept = {}
    for name, tensor in module.state_dict().items():
        is_statistic = name.endswith(("running_mean", "running_var"))
        if tensor.is_floating_point():
            kept[prefix + name] = tensor.numpy().astype(np.float32 if is_statistic else np.float16)
    return kept


def _fill(module: nn.Module, arrays: Mapping[str, Array], prefix: str) -> None:
    state = {
        name: torch.from_numpy(arrays[prefix + name].astype(np.float32))
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    module.load_state_dict({**module.state_dict(), **state})
    module.eval()


def zoo_net(name: str, input_shape: Sequence[int], num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """A network of the zoo with new weights. Raises what the catalogue raises for unknown names and options."""
    try:
        net: nn.Module = catalog.make("model", name, input_shape=tuple(input_shape), num_classes=num_classes, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {name}: its options do not fit ({error})") from error
    return net
