"""Learning jobs of a fleet, asked for at its root: the calls as a server answers them, and as a program makes them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio

from tierline.core.errors import BadFrame, LinkUnavailable, PeerRejected, TierlineError
from tierline.core.link.channel import open_channel
from tierline.core.link.status import abort, from_rpc
from tierline.core.link.tls import TlsFiles, channel_credentials, split_address
from tierline.core.link.tls_failure import explain_failure
from tierline.v1 import learning_pb2 as pb
from tierline.v1 import learning_pb2_grpc

_PIECE_BYTES = 256 << 10

Row = dict[str, Any]


class JobDesk(Protocol):
    """What a root does with jobs. All raise TierlineErrors that say why not."""

    async def submit(self, document: Mapping[str, Any]) -> Row:
        """Queue a run: `experiment`, `arm`, `seed`. Raises ConfigError, DataError, NodeFailed."""
        ...

    async def change(self, job: int, verb: str) -> Row:
        """`stop` or `resume`."""
        ...

    def jobs(self) -> list[Row]:
        """All jobs, oldest first."""
        ...

    def log(self, job: int, after: int) -> list[Row]:
        """Measurements of a job after its first `after`: `round`, `metric`, `value`."""
        ...

    def model(self, job: int, round: int) -> bytes:
        """A kept version of the model as .npz; 0: the newest."""
        ...


def jobs_handler(desk: JobDesk, check_operator: Callable[[Any], None]) -> grpc.GenericRpcHandler:
    """The calls about jobs, for a server of `grpc.aio`; `check_operator` raises for whom may not change them."""

    async def submit(request: pb.JobRequest, context: Any) -> pb.JobsReply:
        try:
            check_operator(context)
            return _reply([await desk.submit(_table(request.document))])
        except TierlineError as error:
            await abort(context, error)

    async def change(request: pb.JobChange, context: Any) -> pb.JobsReply:
        try:
            check_operator(context)
            return _reply([await desk.change(request.job, request.verb)])
        except TierlineError as error:
            await abort(context, error)

    async def jobs(request: pb.JobsRequest, context: Any) -> pb.JobsReply:
        return _reply(desk.jobs())

    async def log(request: pb.JobQuery, context: Any) -> pb.JobsReply:
        try:
            return _reply(desk.log(request.job, request.after))
        except TierlineError as error:
            await abort(context, error)

    async def model(request: pb.JobQuery, context: Any) -> AsyncIterator[pb.JobData]:
        try:
            raw = desk.model(request.job, request.after)
        except TierlineError as error:
            await abort(context, error)
        for start in range(0, len(raw), _PIECE_BYTES):
            yield pb.JobData(data=raw[start : start + _PIECE_BYTES])

    def unary(method: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(method, request.FromString, pb.JobsReply.SerializeToString)

    handlers = {
        "Submit": unary(submit, pb.JobRequest),
        "Change": unary(change, pb.JobChange),
        "Jobs": unary(jobs, pb.JobsRequest),
        "Log": unary(log, pb.JobQuery),
        "Model": grpc.unary_stream_rpc_method_handler(model, pb.JobQuery.FromString, pb.JobData.SerializeToString),
    }
    return grpc.method_handlers_generic_handler("tierline.v1.Learning", handlers)


class JobAsker:
    """`async with JobAsker(address, tls) as root`: every failed call raises the TierlineError it stands for."""

    def __init__(self, address: str, tls: TlsFiles | None = None, *, timeout_s: float = 60.0) -> None:
        split_address(address)
        self._address, self._tls, self._timeout_s = address, tls, timeout_s

    async def __aenter__(self) -> JobAsker:
        self._channel = open_channel(self._address, channel_credentials(self._tls) if self._tls is not None else None)
        self._stub: Any = learning_pb2_grpc.LearningStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def submit(self, document: Mapping[str, Any]) -> Row:
        return (await self._ask(self._stub.Submit, pb.JobRequest(document=json.dumps(document).encode())))[0]

    async def change(self, job: int, verb: str) -> Row:
        return (await self._ask(self._stub.Change, pb.JobChange(job=job, verb=verb)))[0]

    async def jobs(self) -> list[Row]:
        return await self._ask(self._stub.Jobs, pb.JobsRequest())

    async def log(self, job: int, after: int = 0) -> list[Row]:
        return await self._ask(self._stub.Log, pb.JobQuery(job=job, after=after))

    async def model(self, job: int, round: int = 0) -> bytes:
        try:
            call = self._stub.Model(pb.JobQuery(job=job, after=round), timeout=self._timeout_s)
            return b"".join([piece.data async for piece in call])
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error

    async def _ask(self, method: Any, request: Any) -> list[Row]:
        try:
            raw = (await method(request, timeout=self._timeout_s)).rows
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error
        try:
            rows = json.loads(raw)
        except ValueError as error:
            raise BadFrame(f"{self._address}: its answer is not JSON; is this a tierline node?") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise BadFrame(f"{self._address}: its answer is no list of tables; is this a tierline node?")
        return rows

    async def _meaning(self, error: grpc.aio.AioRpcError) -> TierlineError:
        reason = from_rpc(error, self._address)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED and isinstance(reason, PeerRejected):
            return PeerRejected(
                f'{self._address}: keeps no jobs: ask the root of the hierarchy, with [learn] trainer = "torch" in its '
                "cloud.toml"
            )
        if isinstance(reason, LinkUnavailable) and self._tls is not None:
            return await explain_failure(self._address, self._tls.ca.read_bytes(), self._tls)
        return reason


def _reply(rows: list[Row]) -> pb.JobsReply:
    return pb.JobsReply(rows=json.dumps(rows).encode())


def _table(raw: bytes) -> Row:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadFrame("a job that is not JSON") from error
    if not isinstance(value, dict):
        raise BadFrame("a job that is no table")
    return value
