"""Adds precisions to a Bundle: for every Section and head a file more, calibrated on samples.

Shape legend: N views, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from tierline.core import catalog
from tierline.core.bundle import Bundle, Level, Section, write_bundle
from tierline.core.candidates import candidates_of, read_outcomes
from tierline.core.errors import BundleError
from tierline.core.flow.engines import precisions_of
from tierline.core.flow.levels import FEATURE, LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Aggregator
from tierline.core.types import FLOAT32, Array
from tierline.models.precision.convert import convert

ENGINE = "onnxruntime"


def add_precisions(bundle: Bundle, precisions: Sequence[str], out: Path, *, images: Array | None = None) -> Bundle:
    """Write the Bundle with these precisions into `out`; those that it has are made anew, the others stay.

    `images`: uint8 samples as a source gives them, (B, H, W), (B, H, W, C), or one such array per view; default: those
    that a Bundle with candidates keeps. Raises BundleError, ConfigError.
    """
    views_NB = _views(bundle, images)
    files = {file: bundle.read(file) for file in bundle.manifest.files}
    rows = section_rows(bundle, views_NB)

    def more(section: Section) -> Section:
        found = dict(section.precisions)
        (source,) = section.inputs
        made = convert(files[section.file], precisions, {source: rows[section.name]}, section.name)
        made.pop(FLOAT32, None)
        for precision, raw in made.items():
            found[precision] = f"{section.name}.{precision}.onnx"
            files[found[precision]] = raw
        return msgspec.structs.replace(section, precisions=found)

    def of(level: Level) -> Level:
        exit_ = level.exit
        if exit_ is not None and exit_.head is not None:
            exit_ = msgspec.structs.replace(exit_, head=more(exit_.head))
        sections = {part: more(section) for part, section in level.sections.items()}
        return msgspec.structs.replace(level, sections=sections, exit=exit_)

    levels = [of(level) for level in bundle.manifest.levels]
    return write_bundle(out, msgspec.structs.replace(bundle.manifest, levels=levels), files)


def agreement(bundle: Bundle, precision: str, images: Array | None = None) -> dict[str, float]:
    """How far the answers of each exit, asked alone, agree with those in float32, in [0, 1]: the task's own measure,
    mean over samples."""
    views_NB = _views(bundle, images)
    found = []
    for one in (FLOAT32, precision):
        oracle = Oracle(bundle, engine_maker(engine_for(one)), one)
        task = oracle.levels.task
        found.append({name: task.decode(outputs) for name, outputs in oracle.exits(views_NB).outputs.items()})
        oracle.levels.close()
    return {
        name: float(np.mean([task.agreement(a, b) for a, b in zip(answers, found[1][name], strict=True)]))
        for name, answers in found[0].items()
    }


def engine_for(precision: str) -> str:
    """What computes in a precision on any machine: the oracle where ONNX Runtime does not."""
    return ENGINE if precision in precisions_of(ENGINE) else "reference"


def section_rows(bundle: Bundle, views_NB: Array) -> dict[str, Array]:
    """What every Section and head takes for these preprocessed samples, by its name, in float32."""
    levels = Oracle(bundle, engine_maker(ENGINE)).levels
    present_NB = np.ones(views_NB.shape[:2], np.bool_)
    found: dict[str, Array] = {}
    fused_B: Array | None = None
    for index in range(len(levels)):
        runner = levels[index]
        parts = []
        for n, part in enumerate(runner.parts):
            x_B = views_NB[n] if fused_B is None else fused_B
            found[runner.level.sections[part].name] = x_B
            parts.append(runner.run(part, x_B))
        present = present_NB if fused_B is None else present_NB[:1]
        head = runner.level.head
        if head is not None and runner.level.exit is not None:
            combine: Aggregator = catalog.make("aggregate", runner.level.exit.aggregator)
            found[head.name] = combine.combine(np.stack([part[LOGITS] for part in parts]), present)
        if index + 1 < len(levels):
            fused_B = runner.fuse_features(np.stack([part[FEATURE] for part in parts]), present)
    levels.close()
    return found


def cut_rows(bundle: Bundle) -> dict[str, Array]:
    """What crosses at every candidate cut for the calibration samples that the Bundle keeps, in float32, by cut.

    Raises BundleError where it keeps none.
    """
    (x_B,) = _views(bundle, None)
    found: dict[str, Array] = {}
    for cut in candidates_of(bundle.manifest).cuts:
        if cut.piece is not None:
            engine = engine_maker(ENGINE)(bundle.read(cut.piece.file), cut.piece.name)
            (x_B,) = engine.run({next(iter(engine.spec.inputs)): x_B}).values()
            engine.close()
        found[cut.name] = x_B
    return found


def _views(bundle: Bundle, images: Array | None) -> Array:
    """Samples as level 0 takes them, (N, B, C, H, W)."""
    manifest, views = bundle.manifest, bundle.manifest.views
    if images is None:
        kept = read_outcomes(bundle).images if manifest.candidates is not None else None
        if kept is None or not len(kept):
            raise BundleError(f"{bundle.folder}: keeps no calibration images; give some by --samples")
        images = kept
    preprocess = Preprocessor(manifest.preprocess)
    is_by_view = images.ndim == 5 or (images.ndim == 4 and images.shape[-1] not in (1, 3))
    if is_by_view and len(images) != len(views):
        raise BundleError(f"images of {len(images)} views; Bundle {manifest.name!r} takes {len(views)}")
    return np.stack([preprocess.many(images[n] if is_by_view else images, n) for n in range(len(views))])
