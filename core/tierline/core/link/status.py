"""Our errors as gRPC status, and back. The stable code travels in the trailing metadata `tierline-code`."""

from __future__ import annotations

from typing import NoReturn

import grpc
import grpc.aio

from tierline.core import errors

CODE_KEY = "tierline-code"

_STATUS: tuple[tuple[type[errors.TierlineError], grpc.StatusCode], ...] = (
    (errors.UnknownCodec, grpc.StatusCode.UNIMPLEMENTED),
    (errors.CodecError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ShapeMismatch, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.BadFrame, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.BundleError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.PlanError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.PeerRejected, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.AdmissionRefused, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.SecurityError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.LinkTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.LinkUnavailable, grpc.StatusCode.UNAVAILABLE),
)

RETRYABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        # What gRPC makes of a connection that broke while writing, and of a peer that stumbled: no refusal of ours.
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


def status_of(error: errors.TierlineError) -> grpc.StatusCode:
    """The status a service answers with."""
    for cls, status in _STATUS:
        if isinstance(error, cls):
            return status
    return grpc.StatusCode.INTERNAL


async def abort(context: grpc.aio.ServicerContext[object, object], error: errors.TierlineError) -> NoReturn:
    """End a call with one of our errors."""
    await context.abort(status_of(error), str(error), trailing_metadata=((CODE_KEY, error.code),))
    raise AssertionError("abort raises")


def from_rpc(error: grpc.aio.AioRpcError, peer: str) -> errors.TierlineError:
    """What a failed call means to its caller."""
    details = error.details() or error.code().name
    code = next((value for key, value in (error.trailing_metadata() or ()) if key == CODE_KEY), None)
    if code is not None:
        cls = errors.by_code(code.decode() if isinstance(code, bytes) else code)
        return cls(f"{peer} answered: {details}")
    if error.code() in RETRYABLE:
        return errors.LinkUnavailable(f"{peer}: {details}")
    return errors.PeerRejected(f"{peer}: {error.code().name}: {details}")
