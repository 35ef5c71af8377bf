"""From a user's own networks to a Bundle: read, cut or cascaded, preprocessing, labels, and its quality on images.

Such a Bundle has one view. A plain network has one exit, the root's: everything climbs to it. A cascade has one for
each of its networks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from tierline.core import catalog
from tierline.core.bundle import Bundle, Exit, Level, Manifest, Preprocess, write_bundle
from tierline.core.coding import codec_for
from tierline.core.errors import BundleError, ConfigError
from tierline.core.protocols import Engine
from tierline.core.types import Array, Tier
from tierline.models.captures import Captures
from tierline.models.cascade import Stage, cascade
from tierline.models.cut import LOGITS, CutSection, cut, cut_nodes
from tierline.models.detector import BoxForm, with_candidates
from tierline.models.export import ANY_VIEW, first_manifest, view_names, with_calibration
from tierline.models.graph import Network, network_of, read_network
from tierline.models.judged import Judged, calibration_of, judge
from tierline.models.partition._graph import INPUT, CostGraph, Flow, Operator

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


@dataclass(frozen=True)
class Meaning:
    """What a user's network is for."""

    task: str = "classification"
    labels: Sequence[str] = ()
    """Classes in the order of the outputs, or names of the numbers; by default what the images' folder says."""
    boxes: BoxForm | None = None


def for_task(network: Network, meaning: Meaning, captures: Captures) -> tuple[Network, list[str]]:
    """The network with outputs as its task reads them, and the labels. Raises BundleError, ConfigError."""
    shape = network.tensors[network.output].shape
    names = list(meaning.labels) or captures.labels
    if meaning.task == "detection":
        if not names:
            raise ConfigError("--labels: name the classes in the order of the detector's scores, a,b,c")
        return with_candidates(network, len(names), meaning.boxes), names
    if meaning.task == "regression":
        names = names or ["value"]
        fitting: tuple[int, ...] = (len(names), 2 * len(names))
    else:
        fitting = (len(names),)
    if len(shape) != 1 or shape[0] not in fitting:
        some = f" ({', '.join(names[:5])}...)" if names else ""
        given = ", ".join(map(str, ["batch", *shape]))
        raise BundleError(
            f"{network.where}: its output is ({given}), there are {len(names)} labels{some}; give --labels in the "
            "order of its outputs"
        )
    strangers = sorted(set(captures.labels) - set(names))
    if strangers and meaning.task == "classification":
        raise ConfigError(f"--labels: the folder {strangers[0]!r} is none of them")
    return network, names


def import_model(
    network: Network,
    captures: Captures,
    out: Path,
    *,
    name: str,
    preprocess: Preprocess,
    meaning: Meaning | None = None,
    cuts: Sequence[Sequence[str]] | World = (),
    codec: str = "raw",
    origin: Mapping[str, str] | None = None,
) -> tuple[Bundle, Judged]:
    """Write the Bundle into `out`, with its quality on the images.

    `cuts` are sets of tensors from the input upwards, or a World to choose them for. Raises BundleError, ConfigError,
    DataError.
    """
    codec_for(codec)
    meaning = meaning or Meaning()
    network, labels = for_task(network, meaning, captures)
    told = dict(origin or {})
    if isinstance(cuts, World):
        sections, tiers, told["cut"] = cut_for(network, cuts)
    else:
        sections = cut(network, cuts)
        tiers = list(_tiers(len(sections)))
        told["cut"] = " ".join("+".join(tensors) for tensors in cuts) or "none"
    manifest = _manifest(name, labels, preprocess, sections, tiers, codec, told, meaning.task)
    return _written(out, manifest, sections, captures, "best_accuracy")


def import_cascade(
    stages: Sequence[Stage],
    captures: Captures,
    out: Path,
    *,
    name: str,
    meaning: Meaning | None = None,
    codec: str = "jpeg:quality=90",
    goal: str = "target_agreement=0.95",
    origin: Mapping[str, str] | None = None,
) -> tuple[Bundle, Judged]:
    """Write a cascade's Bundle into `out`, with thresholds and quality on the images. Raises as `import_model`."""
    codec_for(codec)
    meaning, fitted, labels = meaning or Meaning(), list[Stage](), list[str]()
    for stage in stages:
        network, labels = for_task(stage.network, meaning, captures)
        fitted.append(replace(stage, network=network))
    sections, preprocess = cascade(fitted)
    told = {**(origin or {}), "cascade": " ".join(Path(stage.network.where).name for stage in stages)}
    manifest = _manifest(name, labels, preprocess, sections, list(_tiers(len(sections))), codec, told, meaning.task)
    return _written(out, manifest, sections, captures, goal)


def _written(
    out: Path, manifest: Manifest, sections: list[CutSection], captures: Captures, goal: str
) -> tuple[Bundle, Judged]:
    bundle = write_bundle(out, manifest, {piece.section.file: piece.model for piece in sections})
    judged = judge(bundle, captures)
    measured = judged.task.measure if judged.truths is not None else "agreement with the last exit"
    return with_calibration(bundle, calibration_of(judged, goal), {"measure": measured}), judged


def _manifest(
    name: str,
    labels: list[str],
    preprocess: Preprocess,
    sections: list[CutSection],
    tiers: list[Tier],
    codec: str,
    origin: dict[str, str],
    task: str,
) -> Manifest:
    views = view_names(1)
    levels = [
        Level(
            tier=tier,
            sections={views[0] if index == 0 else ANY_VIEW: piece.section},
            exit=Exit(name=tier.value, rule=_rule(task, labels, piece)) if LOGITS in piece.section.outputs else None,
            feature_codec=codec,
        )
        for index, (tier, piece) in enumerate(zip(tiers, sections, strict=True))
    ]
    return first_manifest(name, labels, preprocess, views, levels, origin, task)


def _rule(task: str, labels: list[str], piece: CutSection) -> str:
    """What scores an exit. A regression without variances cannot leave early: any rule that takes it will do."""
    if task == "regression":
        return "spread" if piece.section.outputs[LOGITS].shape[0] == 2 * len(labels) else "max_softmax"
    return {"detection": "box_margin"}.get(task, "entropy")


def _tiers(num_sections: int) -> tuple[Tier, ...]:
    if num_sections not in _TIERS:
        raise ConfigError(f"--cut: {num_sections - 1} cuts; there are links for two, device to edge and edge to cloud")
    return _TIERS[num_sections]


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
