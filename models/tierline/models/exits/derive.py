"""From a Bundle with candidate cuts to the Bundle of one choice among them: which levels, where they run, which exits.

Sections are the candidates' pieces and heads, joined file by file: the operators and weights stay as they are, so the
joined Sections compute what the network computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx
from onnx import helper

from tierline.core.bundle import Bundle, Cut, Exit, Level, Manifest, Preprocess, Section, Tensor, write_bundle
from tierline.core.candidates import INPUT, OUTPUT, Outcomes, candidates_of, cut_named, joint, read_outcomes
from tierline.core.coding import codec_for
from tierline.core.errors import BundleError
from tierline.core.types import Tier
from tierline.models.calibrate import calibrate_by
from tierline.models.cut import FEATURE, FUSED, IMAGE, LOGITS
from tierline.models.evaluate import Routed
from tierline.models.exits.pixels import from_pixels, is_of_pixels, to_pixels
from tierline.models.export import ANY_VIEW

_IDENTITY_OPSET, _IDENTITY_IR = 17, 8
_TYPES = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8}


@dataclass(frozen=True, slots=True)
class Stage:
    """A level of the Bundle to be."""

    cut: str
    """Where it ends; it begins where the stage before it ends."""
    tier: Tier
    is_exit: bool = False
    """Samples can leave at its end; at `output` they do in any case."""
    codec: str = "raw"
    """Of what climbs from it."""


def derive(
    bundle: Bundle, stages: Sequence[Stage], out: Path, *, version: int = 1, goal: str = "best_accuracy"
) -> Bundle:
    """Write the Bundle of these levels into `out`; it keeps the candidates, so it can be derived from again.

    Thresholds and curve follow from the outcomes of the exits, by `goal` as in `models.calibrate`. An exit below a cut
    is a level of its own on the same tier. Raises BundleError for cuts out of order or exits that are no candidates.
    """
    return derive_from(
        bundle.manifest,
        {f: bundle.read(f) for f in _kept(bundle.manifest)},
        read_outcomes(bundle),
        stages,
        out,
        version=version,
        goal=goal,
    )


def derive_from(
    manifest: Manifest,
    files: dict[str, bytes],
    outcomes: Outcomes,
    stages: Sequence[Stage],
    out: Path,
    *,
    version: int = 1,
    goal: str = "best_accuracy",
) -> Bundle:
    """As `derive`, of the candidates' files in memory."""
    cuts = candidates_of(manifest).cuts
    ends = [cut_named(candidates_of(manifest), stage.cut) for stage in stages]
    if not ends or ends[-1] != len(cuts) - 1 or sorted(set(ends)) != ends:
        raise BundleError(
            f"Bundle {manifest.name!r}: levels end at {', '.join(stage.cut for stage in stages)}; they must go upwards "
            f"and end at {OUTPUT!r}"
        )
    made = dict(files)
    levels = []
    for index, (stage, start, end) in enumerate(zip(stages, [0, *ends[:-1]], ends, strict=True)):
        codec_for(stage.codec)
        exit_ = cuts[end].exit if stage.is_exit or end == len(cuts) - 1 else None
        if stage.is_exit and exit_ is None:
            there = ", ".join(cut.name for cut in cuts if cut.exit is not None)
            raise BundleError(
                f"Bundle {manifest.name!r}: no candidate exit at {stage.cut!r}; there are some at {there}"
            )
        pixels = manifest.preprocess if stages[0].cut == INPUT and is_of_pixels(stages[0].codec) else None
        section, raw = section_between(
            cuts[start : end + 1], exit_, files, f"level-{index}", is_first=index == 0, pixels=pixels
        )
        made[section.file] = raw
        levels.append(
            Level(
                tier=stage.tier,
                sections={manifest.views[0] if index == 0 else ANY_VIEW: section},
                exit=None if exit_ is None else Exit(exit_.name, exit_.aggregator, rule=exit_.rule),
                feature_codec=stage.codec,
            )
        )
    chosen = msgspec.structs.replace(manifest, version=version, levels=levels, calibration=None)
    exits = chosen.exits()

    def route(thresholds: dict[str, float]) -> Routed:
        found = joint(outcomes, exits, [thresholds[name] for name in exits[:-1]])
        return Routed(found.quality, found.exit_share)

    alone = {name: float(outcomes.quality_ES[outcomes.of(name)].mean()) for name in exits}
    calibration = calibrate_by(chosen, len(outcomes.truth_S), alone, route, goal)
    return write_bundle(out, msgspec.structs.replace(chosen, calibration=calibration), made)


def _kept(manifest: Manifest) -> list[str]:
    """The candidates' files."""
    candidates = candidates_of(manifest)
    heads = [cut.exit.head for cut in candidates.cuts if cut.exit is not None]
    sections = [cut.piece for cut in candidates.cuts] + heads
    return [candidates.outcomes, *(section.file for section in sections if section is not None)]


def section_between(
    cuts: Sequence[Cut],
    exit_: Exit | None,
    files: dict[str, bytes],
    name: str,
    *,
    is_first: bool,
    pixels: Preprocess | None = None,
) -> tuple[Section, bytes]:
    """The Section from the first to the last of adjacent cuts, with the head of `exit_` at its end where it has one.

    `pixels`: what crosses at the cut `input` are the image's pixels, for codecs of images.
    """
    pieces = [cut.piece for cut in cuts[1:] if cut.piece is not None]
    models = [onnx.load_model_from_string(files[piece.file]) for piece in pieces]
    head = exit_.head if exit_ is not None else None
    is_last = cuts[-1].name == OUTPUT
    source, result = IMAGE if is_first else FUSED, LOGITS if is_last else FEATURE
    entry, outputs = cuts[0].tensor, {result: cuts[-1].tensor}
    if pixels is not None and cuts[0].name == INPUT:
        image = Tensor("uint8", entry.shape)
        if is_first:
            models, outputs = [to_pixels(pixels, entry)], {result: image}
        else:
            models, entry = [from_pixels(pixels, entry), *models], image
    chain = _Chain(source, entry)
    for model in models:
        chain.append(model)
    chain.end(result)
    if head is not None:
        chain.branch(onnx.load_model_from_string(files[head.file]))
        outputs[LOGITS] = head.outputs[LOGITS]
    return Section(name, f"{name}.onnx", {source: entry}, outputs), chain.model(name, outputs)


class _Chain:
    """Files of one input and one output each, joined into one graph."""

    def __init__(self, source: str, tensor: Tensor) -> None:
        self._source, self._tensor = source, tensor
        self._last = source
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._num = 0
        self._opsets = [helper.make_opsetid("", _IDENTITY_OPSET)]
        self._ir_version = _IDENTITY_IR

    def append(self, model: Any) -> None:
        self._last = self._take(model)

    def branch(self, model: Any) -> None:
        """A head on what came last."""
        self._nodes.append(helper.make_node("Identity", [self._take(model)], [LOGITS]))

    def end(self, name: str) -> None:
        self._nodes.append(helper.make_node("Identity", [self._last], [name]))

    def model(self, name: str, outputs: dict[str, Tensor]) -> bytes:
        into, *gives = (
            helper.make_tensor_value_info(key, _TYPES[tensor.dtype], ["batch", *tensor.shape])
            for key, tensor in ((self._source, self._tensor), *outputs.items())
        )
        graph = helper.make_graph(self._nodes, name, [into], gives, initializer=self._weights)
        model = helper.make_model(
            graph, opset_imports=self._opsets, ir_version=self._ir_version, producer_name="tierline"
        )
        onnx.checker.check_model(model)
        raw: bytes = model.SerializeToString(deterministic=True)
        return raw

    def _take(self, model: Any) -> str:
        """Copy a file's graph under names of its own, its input being what came last; the name of its output."""
        graph, prefix = model.graph, f"part-{self._num}"
        source, result = graph.input[0].name, f"{prefix}/{graph.output[0].name}"
        self._num += 1
        self._opsets, self._ir_version = model.opset_import, model.ir_version

        def own(name: str) -> str:
            return self._last if name == source else f"{prefix}/{name}" if name else ""

        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = own(node.name)
            copy.input[:] = [own(name) for name in node.input]
            copy.output[:] = [own(name) for name in node.output]
            self._nodes.append(copy)
        for weight in graph.initializer:
            twin = onnx.TensorProto()
            twin.CopyFrom(weight)
            twin.name = own(weight.name)
            self._weights.append(twin)
        return result
