"""From a Choice to what runs: the Bundle with its levels, and the Plan for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tierline.cloud.tuner.choice import Choice
from tierline.cloud.tuner.ladder import END, Ladder
from tierline.core.bundle import Bundle, Manifest, write_bundle
from tierline.core.candidates import INPUT, candidates_of
from tierline.core.coding import codec_for
from tierline.core.flow.knobs import check_codec
from tierline.core.flow.negotiate import uplink_levels
from tierline.core.plan import Hierarchy, Join, Plan, make_plan
from tierline.core.types import FLOAT32

if TYPE_CHECKING:
    from tierline.models.exits.derive import Stage


def write_choice(bundle: Bundle, choice: Choice, out: Path) -> Bundle:
    """Write the Bundle of a choice into `out`; its calibration has the choice's thresholds, so that whoever runs it
    without a Plan of its own runs the choice. Raises BundleError, PlanError."""
    # These read networks, which nothing else of a tuner does.
    from tierline.models.exits.derive import derive
    from tierline.models.precision.bundle import add_precisions

    made = derive(bundle, levels_of(bundle.manifest, choice), out, version=bundle.manifest.version)
    lower = sorted({precision for _, precision in choice.engines.values()} - {FLOAT32})
    if lower:
        made = add_precisions(made, lower, out)
    assert made.manifest.calibration is not None
    thresholds = {name: choice.exits[name] for name in made.manifest.exits()[:-1]}
    calibration = msgspec.structs.replace(made.manifest.calibration, thresholds=thresholds, chosen_by="tierline tune")
    manifest = msgspec.structs.replace(made.manifest, calibration=calibration)
    return write_bundle(out, manifest, {file: made.read(file) for file in made.manifest.files})


def levels_of(manifest: Manifest, choice: Choice) -> list[Stage]:
    """The levels of a choice: a tier's last one ends at its cut and has the codec of its link."""
    from tierline.models.exits.derive import Stage

    codecs = codecs_of(manifest, choice)
    stages = Ladder.of(candidates_of(manifest)).stages(choice.cuts, list(choice.exits))
    return [
        Stage(stage.last, stage.tier, is_exit=stage.exit not in ("", END), codec=codec)
        for stage, codec in zip(stages, codecs, strict=True)
    ]


def codecs_of(manifest: Manifest, choice: Choice) -> list[str]:
    """By level, the codec of what climbs from it; what stays on its tier is not coded."""
    stages = Ladder.of(candidates_of(manifest)).stages(choice.cuts, list(choice.exits))
    above = [stage.tier for stage in stages[1:]]
    climbs = [stage.tier is not tier for stage, tier in zip(stages, above, strict=False)]
    return [choice.codecs[stage.tier] if does else "raw" for stage, does in zip(stages, [*climbs, False], strict=True)]


def structure_of(choice: Choice) -> tuple[Any, ...]:
    """Equal for choices that the same Bundle can run: what else differs are knobs."""
    sends = [choice.codecs[tier] for tier, cut in choice.cuts.items() if cut == INPUT and tier in choice.codecs]
    sends_pixels = any(tuple(codec_for(token).dtypes) == ("uint8",) for token in sends)
    return sorted(choice.cuts.items()), list(choice.exits), sorted(choice.engines.items()), sends_pixels


def with_engines(hierarchy: Hierarchy, choice: Choice) -> Hierarchy:
    """The hierarchy with the engine and the precision that a choice has for each node."""
    return Hierarchy(
        tuple(
            msgspec.structs.replace(node, engine=engine, precision=precision)
            for node in hierarchy.nodes
            for engine, precision in [choice.engines.get(node.id, (node.engine, node.precision))]
        )
    )


def plan_of(
    bundle: Bundle,
    choice: Choice,
    hierarchy: Hierarchy,
    *,
    join: Join | None = None,
    version: int = 1,
    valid: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    """The Plan of a choice for a Bundle of its structure, such as `write_choice` makes; `valid`: what it holds for.

    Raises PlanError, UnknownCodec.
    """
    plan = make_plan(
        with_engines(hierarchy, choice),
        bundle.manifest,
        bundle.digest,
        version=version,
        thresholds=choice.exits,
        join=join,
        mode=choice.mode,
        max_batch=choice.max_batch,
    )
    used = sorted({index for sent in uplink_levels(plan).values() for index in sent})
    codecs = codecs_of(bundle.manifest, choice)
    for index in used:
        codecs[index] = check_codec(codecs[index], bundle.manifest, index)
    return msgspec.structs.replace(plan, codecs=codecs, valid=dict(valid or {}))
