"""The knobs of a Plan: what may change while samples are in flight, since payloads describe themselves.

One shape for the table `[plan]` of cloud.toml and for `tierline plan apply --set KEY=VALUE`; structure (who runs what)
is no knob.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

from tierline.core.bundle import Manifest
from tierline.core.catalog import nearest
from tierline.core.coding import codec_for, stage_names
from tierline.core.config.sections import Count, Milliseconds
from tierline.core.errors import CodecError, PlanError, ShapeMismatch
from tierline.core.flow.levels import FEATURE
from tierline.core.flow.negotiate import uplink_levels
from tierline.core.plan import Mode, Plan

Threshold = Annotated[float, msgspec.Meta(ge=0, le=1)]


class PlanKnobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Overrides of what the Bundle's calibration and the hierarchy say."""

    mode: Mode = "on_demand"
    budget_ms: Milliseconds = 5000.0
    max_batch: Count = 64
    thresholds: dict[str, Threshold] = {}
    """T by exit name, in [0, 1]: a sample leaves where its score is below T; 1 lets everything leave."""
    codecs: dict[str, str] = {}
    """Codec token by the tier of a level: how its features travel, e.g. `device = "affine:4"`."""
    links: dict[str, str] = {}
    """Codec token by node: how what this node sends to its parent travels, whatever its level."""


def knobs_of(plan: Plan, manifest: Manifest) -> PlanKnobs:
    """Every knob of a Plan by its key."""
    tiers = [level.tier.value for level in manifest.levels[:-1]]
    codecs = dict(zip(tiers, plan.codecs, strict=False))
    return PlanKnobs(plan.mode, plan.budget_ms, plan.max_batch, dict(plan.thresholds), codecs, dict(plan.links))


def describe(plan: Plan, manifest: Manifest) -> dict[str, Any]:
    """A Plan as JSON values: `version`, `knobs` by the keys that change them, and `plan`, the whole document."""
    knobs = msgspec.to_builtins(knobs_of(plan, manifest))
    return {"version": plan.version, "knobs": knobs, "plan": msgspec.to_builtins(plan)}


def with_knobs(plan: Plan, manifest: Manifest, knobs: PlanKnobs, version: int) -> Plan:
    """The Plan with these knobs; thresholds and codecs that they leave out stay. Raises PlanError, UnknownCodec."""
    exits = manifest.exits()[:-1]
    for name in knobs.thresholds:
        if name not in exits:
            raise PlanError(f"threshold for {name!r}: Bundle {manifest.name!r} has the exits {', '.join(exits)}")
    tiers = list(dict.fromkeys(level.tier.value for level in manifest.levels[:-1]))
    for tier in knobs.codecs:
        if tier not in tiers:
            raise PlanError(f"codecs.{tier}: features climb from the levels {', '.join(tiers)}{nearest(tier, tiers)}")
    codecs = [knobs.codecs.get(level.tier.value, old) for level, old in zip(manifest.levels, plan.codecs, strict=True)]
    levels = uplink_levels(plan)
    for node in knobs.links:
        if node not in levels:
            raise PlanError(f"links.{node}: no node of this name sends features up{nearest(node, list(levels))}")
    changed = msgspec.structs.replace(
        plan,
        version=version,
        mode=knobs.mode,
        budget_ms=knobs.budget_ms,
        max_batch=knobs.max_batch,
        thresholds={**plan.thresholds, **knobs.thresholds},
        codecs=[*codecs[:-1], plan.codecs[-1]],
        links=knobs.links,
    )
    for node, sent in levels.items():
        for index in sent:
            check_codec(changed.codec(node, index), manifest, index)
    return changed


def one_codec(token: str, manifest: Manifest) -> dict[str, str]:
    """`codecs` that code every level's features alike; none for an empty token. Raises PlanError, UnknownCodec."""
    climbing = manifest.levels[:-1] if token else []
    for index in range(len(climbing)):
        check_codec(token, manifest, index)
    return {level.tier.value: token for level in climbing}


def check_codec(token: str, manifest: Manifest, index: int) -> None:
    """Raises UnknownCodec, or PlanError where the codec cannot carry this level's features."""
    level = manifest.levels[index]
    spec = next(iter(level.sections.values())).outputs[FEATURE].spec
    signs = "bitplane" in stage_names(level.feature_codec)
    if "bitplane" in stage_names(token) and not signs:
        raise PlanError(
            f"codec {token!r}: keeps signs only, and features of level {level.tier.value!r} are real numbers; "
            "try affine:1 or more bits"
        )
    try:
        codec_for(token).encode(np.zeros((1, *spec.shape), spec.dtype))
    except ShapeMismatch as error:
        raise PlanError(f"codec {token!r} for level {level.tier.value!r}: {error}") from None
    except CodecError as error:
        raise type(error)(f"level {level.tier.value!r}: {error}") from None
