"""From a network and its trained exit heads to a Bundle with candidate cuts, exits and their outcomes.

Shapes: S samples of the validation split, E exits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from tierline.core import catalog
from tierline.core.bundle import SCHEMA, Bundle, Candidates, Cut, Exit, Manifest, Preprocess, Section, Tensor
from tierline.core.candidates import INPUT, OUTPUT, Outcomes, pack_outcomes
from tierline.core.errors import BundleError
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Engine, ExitRule, Task
from tierline.core.types import Answer, Array, Tier
from tierline.models.cut import FEATURE, FUSED, LOGITS, cut
from tierline.models.data.dataset import Split
from tierline.models.exits.derive import Stage, derive_from
from tierline.models.exits.heads import Head
from tierline.models.exits.onnx_layers import chain_model
from tierline.models.export import view_names
from tierline.models.graph import CutPoint, Network
from tierline.models.train.exits import FINAL

OUTCOMES = "outcomes.npz"
NUM_IMAGES = 64
"""Calibration samples that the Bundle keeps with their images."""
_BATCH = 100
_WORK = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_RESHAPES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def choose_cuts(network: Network) -> list[CutPoint]:
    """Single-tensor cuts worth trying: those smaller than all below them.

    A tensor as large as one below it costs the link as much, and more work on the slower side. Of equal ones with no
    multiply-adds between them the last counts, since behind its ReLU a tensor codes better, but for mere reshapes.
    """
    maker = network.maker()
    chosen: list[CutPoint] = []
    seen: frozenset[int] = frozenset()
    for point in network.cut_points():
        if point.tensors == (network.input,) or network.nodes[maker[point.name]].op in _RESHAPES:
            continue
        work = frozenset(i for i in network.below(point.tensors) if network.nodes[i].op in _WORK)
        if not chosen or point.num_bytes < chosen[-1].num_bytes:
            chosen.append(point)
        elif point.num_bytes == chosen[-1].num_bytes and work == seen:
            chosen[-1] = point
        else:
            continue
        seen = work
    return chosen


def build(
    network: Network,
    heads: Mapping[str, Head],
    out: Path,
    *,
    name: str,
    labels: Sequence[str],
    preprocess: Preprocess,
    validation: Split,
    cuts: Sequence[str] = (),
    stages: Sequence[Stage] = (),
    rule: str = "entropy",
    goal: str = "best_accuracy",
    origin: Mapping[str, str] | None = None,
) -> Bundle:
    """Write the Bundle into `out`. `heads` by edge; `cuts` are edges without an exit (default: `choose_cuts`).

    `stages` are its levels; by default the device runs up to the first exit and the cloud the rest (without exits: the
    device everything). Raises BundleError for edges that separate nothing.
    """
    points = {point.name: point for point in network.cut_points()}
    wanted = {*heads, *(cuts or (point.name for point in choose_cuts(network)))}
    unknown = sorted(wanted - points.keys())
    if unknown:
        raise BundleError(
            f"{network.where}: {unknown[0]!r} does not separate it; `tierline model cuts` lists what does"
        )
    edges = [point for point in points.values() if point.name in wanted and point.tensors != (network.input,)]
    sections = cut(network, [point.tensors for point in edges])
    files: dict[str, bytes] = {}
    found = [Cut(INPUT, Tensor("float32", network.tensors[network.input].shape), None, 0.0)]
    for index, made in enumerate(sections):
        piece = msgspec.structs.replace(made.section, name=f"piece-{index}", file=f"piece-{index}.onnx")
        files[piece.file] = made.model
        if index == len(edges):
            found.append(Cut(OUTPUT, piece.outputs[LOGITS], piece, 1.0, Exit(FINAL, rule=rule)))
            break
        point, tensor = edges[index], piece.outputs[FEATURE]
        exit_ = None
        if point.name in heads:
            part = _head_section(point.name, index, tensor, heads[point.name])
            source, result = (FUSED, tensor.shape), (LOGITS, part.outputs[LOGITS].shape)
            layers = list(heads[point.name].layers)
            files[part.file] = chain_model(layers, part.name, source, result, network.model)
            exit_ = Exit(point.name, head=part, rule=rule)
        found.append(Cut(point.name, tensor, piece, round(point.share_below, 6), exit_))
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        version=1,
        task="classification",
        labels=list(labels),
        preprocess=preprocess,
        views=view_names(1),
        levels=[],
        files={},
        candidates=Candidates(found, OUTCOMES),
        origin=dict(origin or {}),
    )
    outcomes = measure(manifest, files, validation)
    files[OUTCOMES] = pack_outcomes(outcomes)
    first = next((c.name for c in found if c.exit is not None), OUTPUT)
    below = [Stage(first, Tier.DEVICE, is_exit=True)]
    usual = below if first == OUTPUT else [*below, Stage(OUTPUT, Tier.CLOUD)]
    return derive_from(manifest, files, outcomes, stages or usual, out, goal=goal)


def _head_section(edge: str, index: int, tensor: Tensor, head: Head) -> Section:
    gives = {LOGITS: Tensor("float32", (head.num_classes,))}
    return Section(f"head-{index}", f"head-{index}.onnx", {FUSED: tensor}, gives)


def measure(manifest: Manifest, files: Mapping[str, bytes], split: Split, engine: str = "onnxruntime") -> Outcomes:
    """Run all pieces and heads over a split, with the preprocessing and numerics that nodes use."""
    assert manifest.candidates is not None
    cuts = manifest.candidates.cuts
    preprocessor = Preprocessor(manifest.preprocess)
    task: Task = catalog.make("task", manifest.task, labels=manifest.labels)

    def engine_of(section: Section) -> Engine:
        made: Engine = catalog.make("engine", engine, model=files[section.file], name=section.name, threads=1)
        return made

    pieces = [engine_of(c.piece) for c in cuts if c.piece is not None]
    heads = {c.name: engine_of(c.exit.head) for c in cuts if c.exit is not None and c.exit.head is not None}
    rules: dict[str, ExitRule] = {c.name: catalog.make("exit", c.exit.rule) for c in cuts if c.exit is not None}
    exits = {c.name: c.exit.name for c in cuts if c.exit is not None}
    scores: dict[str, list[Array]] = {name: [] for name in exits}
    answers: dict[str, list[Answer]] = {name: [] for name in exits}
    for start in range(0, len(split), _BATCH):
        x = preprocessor.many(split.images[start : start + _BATCH])
        for piece, end in zip(pieces, cuts[1:], strict=True):
            x = next(iter(piece.run({next(iter(piece.spec.inputs)): x}).values()))
            if end.name in exits:
                outputs = heads[end.name].run({FUSED: x}) if end.name in heads else {LOGITS: x}
                scores[end.name].append(rules[end.name].score(outputs))
                answers[end.name] += task.decode(outputs)
    for made in (*pieces, *heads.values()):
        made.close()
    truths = split.labels.tolist()
    whole = answers[OUTPUT]
    return Outcomes(
        tuple(exits.values()),
        np.stack([np.concatenate(scores[name]) for name in exits]).astype(np.float32),
        _rows([[task.quality([a], [t]) for a, t in zip(answers[name], truths, strict=True)] for name in exits]),
        _rows([[task.agreement(a, b) for a, b in zip(answers[name], whole, strict=True)] for name in exits]),
        split.labels.astype(np.int64),
        np.ascontiguousarray(split.images[:NUM_IMAGES]),
    )


def _rows(values: list[list[float]]) -> Array:
    return np.array(values, np.float32)
