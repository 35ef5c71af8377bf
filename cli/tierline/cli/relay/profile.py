"""What an emulated link is like: round trip, rate, stalls, buffer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError

PACKET_BYTES = 1460
"""Payload of one TCP segment on a link with an MTU of 1500 bytes; stalls are drawn per packet of this size."""

_MIN_QUEUE_BYTES = 64 * 1024
_MIN_QUEUE_S = 0.010
_MIN_STALL_MS = 200.0


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """One emulated link; both directions have the same rate.

    `stall_share` is the share of packets that are lost once. TCP hides the loss: the receiver sees a stall of one
    retransmission time, `max(200 ms, 1.5 rtt)` (Linux' smallest retransmission timeout), in which nothing passes.
    `queue_bytes` bounds the buffer in front of the link, 0 means `max(64 KiB, 2 rate rtt, 10 ms of rate)`.
    """

    rtt_ms: float
    mbit: float
    stall_share: float = 0.0
    queue_bytes: int = 0

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"link: {key} = {value!r} is no number")
        for key, bound, holds in (
            ("rtt_ms", "at least 0", self.rtt_ms >= 0),
            ("mbit", "more than 0", self.mbit > 0),
            ("stall_share", "at least 0 and less than 1", 0 <= self.stall_share < 1),
            ("queue_bytes", "at least 0", self.queue_bytes >= 0),
        ):
            if not holds:
                raise ConfigError(f"link: {key} = {getattr(self, key):g} must be {bound}")

    @property
    def bytes_per_s(self) -> float:
        return self.mbit * 1e6 / 8

    @property
    def delay_s(self) -> float:
        """Propagation one way."""
        return self.rtt_ms / 2e3

    @property
    def stall_s(self) -> float:
        return max(_MIN_STALL_MS, 1.5 * self.rtt_ms) / 1e3

    @property
    def capacity_bytes(self) -> int:
        """Bytes that may wait in front of the link, per direction and for all connections together."""
        if self.queue_bytes:
            return int(self.queue_bytes)
        return int(max(_MIN_QUEUE_BYTES, 2 * self.bytes_per_s * self.rtt_ms / 1e3, _MIN_QUEUE_S * self.bytes_per_s))

    def changed(self, values: Mapping[str, object]) -> LinkProfile:
        """This link with some fields replaced. Raises ConfigError for an unknown key or a bad value."""
        _check_keys(values)
        return replace(self, **values)  # type: ignore[arg-type]  # __post_init__ checks the values


NAMED: Mapping[str, LinkProfile] = {
    "lte": LinkProfile(rtt_ms=50, mbit=5.85),
    "wifi": LinkProfile(rtt_ms=5, mbit=18.9),
    "3g": LinkProfile(rtt_ms=100, mbit=1.1),
    "lan": LinkProfile(rtt_ms=0.3, mbit=1000),
}

_KEYS = tuple(LinkProfile.__dataclass_fields__)


def parse_link(value: str | Mapping[str, object]) -> LinkProfile:
    """A link from `lte`, `rtt_ms=50,mbit=5.85`, `{rtt_ms=50, mbit=5.85}`, `lte,stall_share=0.01` or a TOML table.

    Raises ConfigError naming the nearest valid name or key.
    """
    if not isinstance(value, str):
        return _from_table(value)
    text = value.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    head, *rest = re.split(r"\s*,\s*", text)
    if "=" in head:
        return _from_table(_numbers([head, *rest], value))
    if head not in NAMED:
        raise ConfigError(f"no such link: {head!r}{nearest(head, tuple(NAMED))}; or give rtt_ms=50,mbit=5.85")
    return NAMED[head].changed(_numbers(rest, value))


def _numbers(parts: list[str], whole: str) -> dict[str, object]:
    table: dict[str, object] = {}
    for part in parts:
        key, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"link {whole!r}: {part!r} is not of the form key=number")
        _check_keys([key])
        try:
            table[key] = int(number) if key == "queue_bytes" else float(number)
        except ValueError as error:
            raise ConfigError(f"link {whole!r}: {key} = {number!r} is no number") from error
    return table


def _from_table(table: Mapping[str, object]) -> LinkProfile:
    _check_keys(table)
    missing = [key for key in ("rtt_ms", "mbit") if key not in table]
    if missing:
        raise ConfigError(f"link: {' and '.join(missing)} missing; give both, e.g. rtt_ms=50,mbit=5.85")
    return LinkProfile(**table)  # type: ignore[arg-type]  # __post_init__ checks the values


def _check_keys(keys: Mapping[str, object] | list[str]) -> None:
    for key in keys:
        if key not in _KEYS:
            raise ConfigError(f"link: no key {key!r}{nearest(key, _KEYS)}")
