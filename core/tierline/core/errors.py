"""Every error tierline raises on purpose. `code` is stable, crosses the wire, and maps to a process exit code.

TierlineError                 exit 1
├── ConfigError               exit 2    a file, flag or value the user wrote
│   └── UsageError            exit 2
├── DataError                 exit 3    a data set or sample file missing or malformed
├── BundleError               exit 4    a Bundle unreadable, of another schema, or with a wrong digest
│   └── DigestMismatch        exit 4
├── PlanError                 exit 5    a Plan that does not fit the Bundle or the hierarchy
├── CodecError                exit 6
│   ├── UnknownCodec          exit 6
│   └── CorruptPayload        exit 6
├── ShapeMismatch             exit 6    a tensor of another shape or dtype than agreed
├── EngineError               exit 7
├── LinkError                 exit 8
│   ├── LinkUnavailable       exit 8    retrying is right
│   ├── LinkTimeout           exit 8
│   ├── PeerRejected          exit 9    the other side refused, retrying as is cannot help
│   └── BadFrame              exit 8    bytes that are no valid message
├── AdmissionRefused          exit 10   a bound on memory or samples in flight was reached
├── SecurityError             exit 11   certificates, keys, tokens
├── PortInUse                 exit 12
├── MissingDependency         exit 13   an extra is not installed
└── NodeFailed                exit 14   a process that tierline started ended
"""

from __future__ import annotations

from typing import ClassVar


class TierlineError(Exception):
    """Root of all errors raised on purpose; the message says what was wrong, where, and what to do."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1


class ConfigError(TierlineError):
    """A file, flag or value the user wrote is wrong."""

    code = "config"
    exit_code = 2


class UsageError(ConfigError):
    """A combination of flags that makes no sense."""

    code = "usage"


class DataError(TierlineError):
    """A data set or sample file is missing or malformed."""

    code = "data"
    exit_code = 3


class BundleError(TierlineError):
    """A Bundle is unreadable or of a schema this version does not know."""

    code = "bundle"
    exit_code = 4


class DigestMismatch(BundleError):
    """Two sides, or a manifest and its file, disagree on a digest; the message names both."""

    code = "digest_mismatch"


class PlanError(TierlineError):
    """A Plan does not fit the Bundle or the hierarchy."""

    code = "plan"
    exit_code = 5


class CodecError(TierlineError):
    """A tensor could not be coded or decoded."""

    code = "codec"
    exit_code = 6


class UnknownCodec(CodecError):
    """The codec token names no codec of this node."""

    code = "unknown_codec"


class CorruptPayload(CodecError):
    """Coded bytes that no encoder of ours produced, or that were damaged on the way."""

    code = "corrupt_payload"


class ShapeMismatch(TierlineError):
    """A tensor has another shape or dtype than was agreed."""

    code = "shape_mismatch"
    exit_code = 6


class EngineError(TierlineError):
    """A Section could not be loaded or run."""

    code = "engine"
    exit_code = 7


class LinkError(TierlineError):
    """Something went wrong between two nodes."""

    code = "link"
    exit_code = 8


class LinkUnavailable(LinkError):
    """The peer is not in reach; retrying is right."""

    code = "unavailable"


class LinkTimeout(LinkError):
    """No progress within the time allowed."""

    code = "timeout"


class BadFrame(LinkError):
    """Bytes or fields that form no valid message; the sender should fix its code."""

    code = "bad_frame"


class PeerRejected(LinkError):
    """The other side refused for a stated reason; retrying unchanged cannot help."""

    code = "rejected"
    exit_code = 9


class AdmissionRefused(TierlineError):
    """A bound on memory or samples in flight was reached."""

    code = "admission"
    exit_code = 10


class SecurityError(TierlineError):
    """Certificates, keys or tokens are missing, expired, revoked or foreign."""

    code = "security"
    exit_code = 11


class PortInUse(TierlineError):
    """The address to listen on is taken."""

    code = "port_in_use"
    exit_code = 12


class MissingDependency(TierlineError):
    """A feature needs an extra that is not installed; the message gives the pip command."""

    code = "missing_dependency"
    exit_code = 13


class NodeFailed(TierlineError):
    """A process that tierline started ended before its time."""

    code = "node_failed"
    exit_code = 14


def by_code(code: str) -> type[TierlineError]:
    """The error class with this stable code (for errors that crossed the wire); TierlineError when unknown."""
    pending: list[type[TierlineError]] = [TierlineError]
    while pending:
        cls = pending.pop()
        if cls.code == code:
            return cls
        pending.extend(cls.__subclasses__())
    return TierlineError
