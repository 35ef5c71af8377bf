"""What a Tuner aims at: one figure to make small, and limits on the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Minimise = Literal["latency_mean_ms", "latency_p50_ms", "latency_p99_ms", "bytes_per_sample", "energy_j"]
_Positive = Annotated[float, msgspec.Meta(gt=0)]

LIMITS = {
    "max_quality_loss": "quality_loss",
    "max_latency_mean_ms": "latency_mean_ms",
    "max_latency_p50_ms": "latency_p50_ms",
    "max_latency_p99_ms": "latency_p99_ms",
    "max_bytes_per_sample": "bytes_per_sample",
    "max_energy_j": "energy_j",
}
"""Key of a limit to the figure that it bounds."""


class Watts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node of a tier draws beyond idling: while it computes, and while its radio sends."""

    active: Annotated[float, msgspec.Meta(ge=0)]
    radio: Annotated[float, msgspec.Meta(ge=0)]


class Goal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Table `[goal]` of hierarchy.toml."""

    minimise: Minimise = "latency_p50_ms"
    max_quality_loss: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Against the uncut network's own answers: accuracy that is lost, or agreement where labels are unknown."""
    max_latency_mean_ms: _Positive | None = None
    max_latency_p50_ms: _Positive | None = None
    max_latency_p99_ms: _Positive | None = None
    max_bytes_per_sample: _Positive | None = None
    max_energy_j: _Positive | None = None
    rate_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Samples per second and view; 0: one after the other, so nothing waits in a queue."""
    watts: dict[str, Watts] = {}
    """By tier, of the nodes whose energy counts; needed for `energy_j` only."""

    def limits(self) -> dict[str, float]:
        """The limits that are set, by the figure that they bound."""
        found: dict[str, Any] = {figure: getattr(self, key) for key, figure in LIMITS.items()}
        return {figure: float(limit) for figure, limit in found.items() if limit is not None}
