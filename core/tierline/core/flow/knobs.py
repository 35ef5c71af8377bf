"""The knobs of a Plan: what may change while samples are in flight, since payloads describe themselves.

One shape for the table `[plan]` of cloud.toml and for `tierline plan apply --set KEY=VALUE`; structure (who runs what)
is no knob.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import numpy as np

from tierline.core.bundle import Manifest
from tierline.core.catalog import nearest
from tierline.core.coding import codec_for, stage_names
from tierline.core.config.sections import Count, Milliseconds
from tierline.core.errors import CodecError, PlanError, ShapeMismatch, UnknownCodec
from tierline.core.flow.levels import FEATURE
from tierline.core.flow.negotiate import uplink_levels
from tierline.core.plan import Mode, Plan
from tierline.core.types import Array, TensorSpec

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
    levels = uplink_levels(plan)
    for node in knobs.links:
        if node not in levels:
            raise PlanError(f"links.{node}: no node of this name sends features up{nearest(node, list(levels))}")
    codecs = list(plan.codecs)
    used = {index for node, sent in levels.items() if node not in knobs.links for index in sent}
    for index, level in enumerate(manifest.levels[:-1]):
        token = knobs.codecs.get(level.tier.value, codecs[index])
        if index in used or token != codecs[index]:  # what no link uses may be used once nodes move
            codecs[index] = check_codec(token, manifest, index)
    checked = {(token, i): check_codec(token, manifest, i) for node, token in knobs.links.items() for i in levels[node]}
    return msgspec.structs.replace(
        plan,
        version=version,
        mode=knobs.mode,
        budget_ms=knobs.budget_ms,
        max_batch=knobs.max_batch,
        thresholds={**plan.thresholds, **knobs.thresholds},
        codecs=codecs,
        links={node: checked[token, min(levels[node])] for node, token in knobs.links.items()},
    )


def one_codec(token: str, manifest: Manifest) -> dict[str, str]:
    """`codecs` that code every level's features alike; none for an empty token. Raises PlanError, UnknownCodec."""
    climbing = manifest.levels[:-1] if token else []
    for index in range(len(climbing)):
        check_codec(token, manifest, index)
    return {level.tier.value: token for level in climbing}


def check_codec(token: str, manifest: Manifest, index: int) -> str:
    """The token in its canonical form. Raises UnknownCodec, or PlanError where it cannot carry this level's features.

    Tried are zeros (absent views), +-1 and what the level's features are: signs, real numbers, or the integers that
    the Bundle's own codec takes. What is coded is decoded as the other end does.
    """
    level = manifest.levels[index]
    spec = next(iter(level.sections.values())).outputs[FEATURE].spec
    where = f"codec {token!r} for level {level.tier.value!r}"
    if "bitplane" in stage_names(token) and "bitplane" not in stage_names(level.feature_codec):
        raise PlanError(
            f"codec {token!r}: keeps signs only, and features of level {level.tier.value!r} are real numbers; "
            "try affine:1 or more bits"
        )
    try:
        codec = codec_for(token)
    except UnknownCodec as error:
        raise UnknownCodec(f"level {level.tier.value!r}: {error}") from None
    try:
        for x_B in _typical(level.feature_codec, spec):
            payload = codec.encode(x_B)
            codec_for(payload.codec).decode(payload, spec)
    except (CodecError, ShapeMismatch) as error:
        raise PlanError(f"{where}: {error}") from None
    return codec.token


def _typical(own_token: str, spec: TensorSpec) -> Iterator[Array]:
    """Batches of one as the features of a level may be, told by the codec that the Bundle states for them."""
    shape = (1, *spec.shape)
    yield np.zeros(shape, spec.dtype)
    rng = np.random.default_rng(0)
    alphabet = _alphabet(own_token)
    if alphabet is not None:
        yield rng.choice(np.array([alphabet.start, alphabet[-1]]), shape).astype(spec.dtype)
    elif spec.dtype in ("float32", "float16"):
        yield rng.choice(np.array([-1, 1]), shape).astype(spec.dtype)
        if "bitplane" not in stage_names(own_token):
            yield rng.standard_normal(shape, np.float32).astype(spec.dtype)
    elif spec.dtype != "bool":
        info = np.iinfo(spec.dtype)
        yield rng.integers(info.min, info.max, shape, spec.dtype, endpoint=True)


def _alphabet(token: str) -> range | None:
    """The integers that a codec takes, where it takes no other values; a stage that packs bytes changes nothing."""
    for stage in token.split("+"):
        with contextlib.suppress(CodecError):
            found: range | None = getattr(codec_for(stage), "alphabet", None)
            if found is not None:
                return found
    return None
