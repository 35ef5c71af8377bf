"""What nodes say when they meet: plain values of the Fleet service, and how often they speak."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

PROTOCOL = 1
"""Version of tierline.v1 spoken here; a peer must offer a range that holds it."""

HEARTBEAT_S = 1.0
DEAD_AFTER_BEATS = 3
"""A peer that is silent for so many heartbeats is taken for gone, whatever TCP believes."""

CHUNK_BYTES = 256 << 10
"""Of files."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""Both ends use the same; the server's minimum ping interval is half the client's period."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A child introduces itself."""

    node: str
    tier: str
    epoch: int
    views: tuple[str, ...]
    bundle_digest: str
    """Empty where the child takes whatever Bundle the parent has."""
    codecs: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """The parent takes it in."""

    parent: str
    epoch: int
    plan: bytes
    plan_digest: str
    bundle_digest: str
    manifest: bytes
    run: str
    heartbeat_s: float = HEARTBEAT_S
    revoked: tuple[str, ...] = ()
    """Serials of revoked certificates, hexadecimal."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat of a child: its status and that of everything below it, as JSON."""

    node: str
    epoch: int
    status: bytes
    rtt_ms: float
    switches: tuple[NodeState, ...] = ()
    """How far the node, and everything below it, is with a Plan of another structure."""


State = Literal["loading", "ready", "failed", "active", "settled"]
"""Of a node and a Plan of another structure: `active` while older samples are in flight, then `settled`."""

Phase = Literal["knobs", "prepare", "commit", "abort"]


@dataclass(frozen=True, slots=True)
class NodeState:
    """How far a node is with a Plan."""

    node: str
    version: int
    state: State
    message: str = ""
    """Why it failed, or what an operator should know."""


@dataclass(frozen=True, slots=True)
class Order:
    """A parent's word about a Plan: other knobs at once, another structure in two phases."""

    phase: Phase
    plan: bytes
    """Its document."""
    bundle_digest: str = ""
    manifest: bytes = b""
    """Content of bundle.json; not with knobs."""
    first_seq: int = 0
    """Of a commit: ids that the parent mints are made under this Plan from this number on."""


@dataclass(frozen=True, slots=True)
class PlanChange:
    """What an operator asks of the root."""

    settings: tuple[str, ...] = ()
    """KEY=VALUE, as in cloud.toml's table `[plan]`."""
    rollback_to: int = 0
    dry_run: bool = False
    bundle: str = ""
    """Digest of an offered Bundle; empty: the present one."""
    plan: bytes = b""
    """Document of a whole Plan for that Bundle; empty: made from the hierarchy."""
    tuning: bytes = b""
    """Document of what that Plan was chosen from; empty: it was not tuned."""


@dataclass(frozen=True, slots=True)
class ProfileWish:
    """What an operator wants measured; what is empty is left to the root."""

    nodes: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    codecs: tuple[str, ...] = ()
    run_s: float = 0.0
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProfileStep:
    """How far one node is; the last step has the Profile instead."""

    node: str
    state: str
    profile: bytes = b""


Fetch = Callable[[str], Awaitable[bytes]]
"""Gets a file of the Bundle by digest from the parent."""
