"""What a Tuner decides, and what it proposes: frozen values that print as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from tierline.cloud.tuner.goal import Goal
from tierline.core.plan import Mode
from tierline.core.types import FLOAT32, Tier


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to run a network on a hierarchy."""

    cuts: dict[Tier, str]
    """By tier: how far up the network it goes. `input`: it sends the input; `output`: it runs all that is left."""
    exits: dict[str, float]
    """Thresholds of the exits in use, from the sensor upwards; the network's end is always there."""
    engines: dict[str, tuple[str, str]]
    """By node: engine token and precision."""
    codecs: dict[Tier, str]
    """By the tier below a link: the codec of what climbs it."""
    max_batch: int = 64
    window_ms: float = 0.0
    """Wait for the views of one sample; taken from the hierarchy, since networks that can be cut have one view."""
    mode: Mode = "on_demand"
    """Of one view both modes are the same: where an exit is decided on the device, a feature only travels if needed."""

    def told(self) -> str:
        """In a few words."""
        cuts = " ".join(f"{tier.value}..{cut}" for tier, cut in self.cuts.items())
        exits = " ".join(f"{name}<{threshold:.3g}" for name, threshold in self.exits.items())
        codecs = " ".join(f"{tier.value}:{token}" for tier, token in self.codecs.items())
        lower = " ".join(f"{node}:{precision}" for node, (_, precision) in self.engines.items() if precision != FLOAT32)
        return "; ".join(part for part in (cuts, exits, codecs, lower) if part)


class Predicted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of one Choice under the cost model."""

    latency_mean_ms: float
    latency_p50_ms: float
    latency_p99_ms: float
    bytes_per_sample: float
    energy_j: float
    quality_loss: float
    exit_share: dict[str, float]


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Choice with its figures."""

    choice: Choice
    predicted: Predicted


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `propose` found. `front` is in order of mean latency."""

    goal: Goal
    chosen: Point
    front: tuple[Point, ...]
    exact: bool
    """Whether every choice of the space below was priced, or shown to be no better than one that was."""
    space: str
    """What was searched, in words, with what was left out and why."""
    quality: float
    """Of the uncut network on the calibration split."""
    num_choices: int
    """In the space."""
    num_priced: int
    profile: str = ""
    """Digest of the Profile."""
    bundle: str = ""
    """Digest of the Bundle with the candidates."""
    left_out: tuple[str, ...] = ()

    def document(self) -> bytes:
        """Canonical JSON."""
        return msgspec.json.encode(self, order="sorted")


def row(point: Point) -> dict[str, Any]:
    """A line of a table."""
    p = point.predicted
    return {
        "choice": point.choice.told(),
        "mean_ms": round(p.latency_mean_ms, 2),
        "p50_ms": round(p.latency_p50_ms, 2),
        "p99_ms": round(p.latency_p99_ms, 2),
        "bytes": round(p.bytes_per_sample),
        "quality_loss": round(p.quality_loss, 4),
        "exits": " ".join(f"{name} {100 * share:.0f}%" for name, share in p.exit_share.items()),
    }
