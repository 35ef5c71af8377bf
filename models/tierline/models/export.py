"""From a trained DDNN to a Bundle: one ONNX file per Section, and the manifest that says how they fit together.

Inputs are named `image` at level 0 and `fused` above, outputs `feature` (but at the root) and `logits`; the extra
block of a `concat` local exit turns `fused` into `logits`. ONNX allows no name on both sides of a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from tierline.core.bundle import (
    SCHEMA,
    Bundle,
    Calibration,
    Exit,
    Level,
    Manifest,
    Preprocess,
    Tensor,
    write_bundle,
)
from tierline.core.bundle import Section as SectionFile
from tierline.core.types import Tier
from tierline.models.ddnn import DDNN, Section
from tierline.models.onnx_graph import GraphWriter

ANY_VIEW = "*"
"""Key of the one Section of a level above the devices."""


def view_names(num_views: int) -> list[str]:
    """`view-0`, `view-1`, ..."""
    return [f"view-{i}" for i in range(num_views)]


def make_bundle(
    model: DDNN,
    folder: Path,
    *,
    name: str,
    labels: list[str],
    preprocess: Preprocess,
    origin: dict[str, str] | None = None,
) -> Bundle:
    """Write the Bundle of a trained model into `folder`; equal weights give equal bytes."""
    config = model.config
    files: dict[str, bytes] = {}
    views = view_names(config.num_views)
    head = None if model.head is None else _head(model, files)
    devices = {
        view: _section(f"device-{i}", model.device(i), "image", files, root=False) for i, view in enumerate(views)
    }
    levels = [
        Level(
            tier=Tier.DEVICE,
            sections=devices,
            exit=Exit(name="local", aggregator=config.local_aggregator, head=head, rule=config.exit_rule),
            feature_aggregator=config.feature_aggregator,
            feature_codec=_codec(model.device(0)),
        )
    ]
    if model.edge is not None:
        levels.append(
            Level(
                tier=Tier.EDGE,
                sections={ANY_VIEW: _section("edge", model.edge, "fused", files, root=False)},
                exit=Exit(name="edge", rule=config.exit_rule),
                feature_codec=_codec(model.edge),
            )
        )
    cloud = {ANY_VIEW: _section("cloud", model.cloud, "fused", files, root=True)}
    levels.append(Level(tier=Tier.CLOUD, sections=cloud, exit=Exit(name="cloud", rule=config.exit_rule)))
    return write_bundle(folder, first_manifest(name, labels, preprocess, views, levels, origin or {}), files)


def first_manifest(
    name: str,
    labels: list[str],
    preprocess: Preprocess,
    views: list[str],
    levels: list[Level],
    origin: dict[str, str],
    task: str = "classification",
) -> Manifest:
    """Version 1 of a Bundle; its files are noted as they are written."""
    return Manifest(
        schema=SCHEMA,
        name=name,
        version=1,
        task=task,
        labels=labels,
        preprocess=preprocess,
        views=views,
        levels=levels,
        files={},
        origin=origin,
    )


def with_calibration(bundle: Bundle, calibration: Calibration, origin: Mapping[str, str] | None = None) -> Bundle:
    """The same Bundle, rewritten with its thresholds and curve, and with more to tell about its origin."""
    files = {file: bundle.read(file) for file in bundle.manifest.files}
    told = {**bundle.manifest.origin, **(origin or {})}
    manifest = msgspec.structs.replace(bundle.manifest, calibration=calibration, origin=told)
    return write_bundle(bundle.folder, manifest, files)


def _codec(section: Section) -> str:
    return "bitplane" if section.bit_features else "raw"


def _section(name: str, section: Section, source: str, files: dict[str, bytes], *, root: bool) -> SectionFile:
    graph = GraphWriter(name)
    x = graph.input(source, section.input_shape)
    for block in section.conv_blocks():
        x = graph.convp(x, block)
    outputs = {"logits": Tensor("float32", (section.num_classes,))}
    graph.output(graph.fc(x, section.exit), "logits", outputs["logits"].shape)
    if not root:
        outputs["feature"] = Tensor("float32", section.feature_shape)
        graph.output(x, "feature", section.feature_shape)
    file = f"{name}.onnx"
    files[file] = graph.to_bytes()
    return SectionFile(name, file, {source: Tensor("float32", section.input_shape)}, outputs)


def _head(model: DDNN, files: dict[str, bytes]) -> SectionFile:
    assert model.head is not None
    num_in, num_out = model.config.num_views * model.config.num_classes, model.config.num_classes
    graph = GraphWriter("local-head")
    graph.output(graph.fc(graph.input("fused", (num_in,)), model.head), "logits", (num_out,))
    files["local-head.onnx"] = graph.to_bytes()
    inputs, outputs = {"fused": Tensor("float32", (num_in,))}, {"logits": Tensor("float32", (num_out,))}
    return SectionFile("local-head", "local-head.onnx", inputs, outputs)
