"""From a user's own network to a Bundle: read, cut, preprocessing, labels, and its accuracy on a folder of images.

Such a Bundle has one view. A plain network has one exit, the root's: everything climbs to it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from tierline.core import catalog
from tierline.core.bundle import Bundle, Calibration, Exit, Level, Manifest, Preprocess, write_bundle
from tierline.core.coding import codec_for
from tierline.core.errors import BundleError, ConfigError
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Engine
from tierline.core.types import Array, Tier
from tierline.models.calibrate import calibrate
from tierline.models.cut import LOGITS, CutSection, cut, cut_nodes
from tierline.models.data.folder import Files
from tierline.models.evaluate import run_bundle
from tierline.models.export import ANY_VIEW, first_manifest, view_names, with_calibration
from tierline.models.graph import Network, network_of, read_network
from tierline.models.partition._graph import INPUT, CostGraph, Flow, Operator
from tierline.models.train.ddnn import Views

_TIERS = {1: (Tier.DEVICE,), 2: (Tier.DEVICE, Tier.CLOUD), 3: (Tier.DEVICE, Tier.EDGE, Tier.CLOUD)}
"""By number of Sections; an uncut network is the device's, since a view's first Section runs where the view is."""
_TIMED_RUNS = 7


@dataclass(frozen=True)
class World:
    """What an automatic cut reckons with, from the device upwards. Speeds are relative to this machine's."""

    slower: tuple[float, ...] = (10.0, 1.0)
    """By tier: how many times this machine's time a Section takes there."""
    mbit: tuple[float, ...] = (18.88,)
    """By link, upwards."""


def read_own(source: str, size: tuple[int, int] | None = None, channels: int | None = None) -> Network:
    """An ONNX file, or `module:Net` exported for that size of image. Raises BundleError, ConfigError."""
    if ":" not in source or Path(source).exists():
        return read_network(Path(source))
    from tierline.models.torch_export import export, load_module  # torch, which an ONNX file does not need

    if size is None:
        raise ConfigError(f"{source}: a torch module does not tell its input; give --size HxW")
    return network_of(onnx.load_model_from_string(export(load_module(source), (channels or 3, *size))), source)


def preprocess_of(
    network: Network, size: tuple[int, int] | None, mean: Sequence[float], std: Sequence[float]
) -> Preprocess:
    """What makes the network's input from an image. Raises ConfigError where size, mean or std do not fit it."""
    shape = network.tensors[network.input].shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise BundleError(
            f"{network.where}: input is (batch, {', '.join(map(str, shape))}); an image is (batch, C, H, W)"
        )
    if size not in (None, shape[1:]):
        raise ConfigError(f"--size: {network.where} takes {shape[1]}x{shape[2]}; leave it out")
    channels: Literal[1, 3] = 3 if shape[0] == 3 else 1
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(f"{flag}: {len(values)} values for {channels} channels; give 1 or {channels}")
    spread = tuple(tuple(values) * (channels // len(values)) for values in (mean, std))
    return Preprocess(size=(shape[1], shape[2]), channels=channels, mean=spread[0], std=spread[1])


def import_model(
    network: Network,
    files: Files,
    out: Path,
    *,
    name: str,
    preprocess: Preprocess,
    cuts: Sequence[Sequence[str]] | World = (),
    labels: Sequence[str] = (),
    codec: str = "raw",
    origin: Mapping[str, str] | None = None,
) -> Bundle:
    """Write the Bundle into `out`, with its accuracy on the folder's images.

    `cuts` are sets of tensors from the input upwards, or a World to choose them for. `labels` are in the order of the
    logits; by default the folder names. Raises BundleError, ConfigError, DataError.
    """
    codec_for(codec)
    shape = network.tensors[network.output].shape
    names = list(labels) or files.labels
    if len(shape) != 1 or shape[0] != len(names):
        raise BundleError(
            f"{network.where}: its output is (batch, {', '.join(map(str, shape))}), there are {len(names)} labels "
            f"({', '.join(names[:5])}...); give --labels in the order of its outputs"
        )
    strangers = sorted(set(files.labels) - set(names))
    if strangers:
        raise ConfigError(f"--labels: the folder {strangers[0]!r} is none of them")
    told = dict(origin or {})
    if isinstance(cuts, World):
        sections, tiers, told["cut"] = cut_for(network, cuts)
    else:
        sections = cut(network, cuts)
        tiers = list(_tiers(len(sections)))
        told["cut"] = " ".join("+".join(tensors) for tensors in cuts) or "none"
    bundle = write_bundle(out, _manifest(name, names, preprocess, sections, tiers, codec, told), _files(sections))
    views = load_views(files, preprocess, names)
    return with_calibration(bundle, _measure(bundle, views))


def load_views(files: Files, preprocess: Preprocess, labels: Sequence[str]) -> Views:
    """Every image as nodes would see it, float32 (1, S, C, h, w), with the index of its folder's name in `labels`."""
    preprocessor = Preprocessor(preprocess)
    images = np.stack([preprocessor(image) for image in files.images()])
    truths = np.array([labels.index(label) for label in files.truths], np.int64)
    return Views(images[np.newaxis], truths, truths[np.newaxis])


def _measure(bundle: Bundle, views: Views) -> Calibration:
    return calibrate(bundle, run_bundle(bundle, views, batch_size=64))


def _manifest(
    name: str,
    labels: list[str],
    preprocess: Preprocess,
    sections: list[CutSection],
    tiers: list[Tier],
    codec: str,
    origin: dict[str, str],
) -> Manifest:
    views = view_names(1)
    levels = [
        Level(
            tier=tier,
            sections={views[0] if index == 0 else ANY_VIEW: piece.section},
            exit=Exit(name=tier.value) if LOGITS in piece.section.outputs else None,
            feature_codec=codec,
        )
        for index, (tier, piece) in enumerate(zip(tiers, sections, strict=True))
    ]
    return first_manifest(name, labels, preprocess, views, levels, origin)


def _tiers(num_sections: int) -> tuple[Tier, ...]:
    if num_sections not in _TIERS:
        raise ConfigError(f"--cut: {num_sections - 1} cuts; there are links for two, device to edge and edge to cloud")
    return _TIERS[num_sections]


def _files(sections: list[CutSection]) -> dict[str, bytes]:
    return {piece.section.file: piece.model for piece in sections}


def cut_for(network: Network, world: World) -> tuple[list[CutSection], list[Tier], str]:
    """The cut of least delay by `min_cut`: Sections, the tier of each, and how it was found. Raises ConfigError.

    The whole network's time on this machine, shared out over its nodes by their multiply-adds, stands for a profile of
    every tier; links cost their bytes only.
    """
    total = measured_s(network)
    tiers = catalog.make("cut", "min_cut").place(cost_graph(network, world, total))
    # A tier without nodes has no Section, but the device's, which takes the image.
    used = sorted({0, *tiers})
    belows = [frozenset(i for i, tier in enumerate(tiers) if tier < above) for above in used[1:]]
    found = " ".join("+".join(network.crossing(below)) for below in belows) or "none"
    slower, mbit = (" ".join(f"{x:g}" for x in xs) for xs in (world.slower, world.mbit))
    names = _TIERS.get(len(world.slower), ())
    if len(names) < 2:
        raise ConfigError(
            f"--slower: {len(world.slower)} tiers; give two (device, cloud) or three (device, edge, cloud)"
        )
    text = f"{found} (min_cut: {total * 1e3:.3g} ms here, slower {slower}, Mbit/s {mbit})"
    return cut_nodes(network, belows), [names[tier] for tier in used], text


def cost_graph(network: Network, world: World, total_s: float) -> CostGraph:
    """Seconds of every node by tier, and of every tensor by link. Raises ConfigError for a World of wrong size."""
    if len(world.mbit) != len(world.slower) - 1:
        raise ConfigError(f"--mbit: {len(world.mbit)} links for {len(world.slower)} tiers; give one less than --slower")
    total_macs = max(1, sum(node.macs for node in network.nodes))
    operators = tuple(
        Operator(node.name, tuple(total_s * node.macs / total_macs * slower for slower in world.slower))
        for node in network.nodes
    )
    readers: dict[str, list[int]] = {network.input: [], **{name: [] for name in network.maker()}}
    for index, node in enumerate(network.nodes):
        for name in node.inputs:
            readers[name].append(index)
    maker = network.maker()
    flows = tuple(
        Flow(name, maker.get(name, INPUT), tuple(found), tuple(_seconds(network, name, mbit) for mbit in world.mbit))
        for name, found in readers.items()
    )
    return CostGraph(operators, flows)


def _seconds(network: Network, name: str, mbit: float) -> float:
    spec = network.tensors.get(name)
    return float("inf") if spec is None else spec.nbytes() * 8 / (mbit * 1e6)


def measured_s(network: Network) -> float:
    """Median time of one row on this machine, one thread."""
    raw = network.model.SerializeToString()
    engine: Engine = catalog.make("engine", "onnxruntime", model=raw, name=network.where, threads=1)
    row: dict[str, Array] = {network.input: np.zeros((1, *network.tensors[network.input].shape), np.float32)}
    engine.run(row)
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        engine.run(row)
        times.append(time.perf_counter() - started)
    engine.close()
    return float(np.median(times))
