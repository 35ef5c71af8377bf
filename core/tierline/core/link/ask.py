"""Calls of a program to a node: status, inference, subscription. Messages in, plain values out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from tierline.core.bundle import MANIFEST, Bundle
from tierline.core.errors import BadFrame, LinkUnavailable, PeerRejected, TierlineError
from tierline.core.link.channel import open_channel
from tierline.core.link.fleet import CHUNK_BYTES, PlanChange, ProfileStep, ProfileWish
from tierline.core.link.status import from_rpc
from tierline.core.link.tls import TlsFiles, channel_credentials, split_address
from tierline.core.link.tls_failure import explain_failure
from tierline.core.profile import Profile, parse_profile
from tierline.core.types import Payload
from tierline.core.wire import tensor_to_wire
from tierline.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc

SWITCH_TIMEOUT_S = 300.0
"""Nodes may have to fetch, load and warm up, and samples of the Plan before to be answered."""


class Asker:
    """One channel to one node; every failed call raises the TierlineError it stands for."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        split_address(address)
        self._address, self._tls = address, tls
        self.channel = open_channel(address, channel_credentials(tls) if tls is not None else None)
        self._inference = inference_pb2_grpc.InferenceStub(self.channel)
        self._fleet = fleet_pb2_grpc.FleetStub(self.channel)

    async def infer(self, images: Mapping[str, Payload], seq: int | None, budget_ms: float, timeout_s: float) -> bytes:
        """The outcome as one JSON document."""
        request = inference_pb2.InferRequest(budget_ms=budget_ms)
        if seq is not None:
            request.seq = seq
        for view, payload in images.items():
            tensor_to_wire(payload, request.images[view])
        try:
            return (await self._inference.Infer(request, timeout=timeout_s)).outcome
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error

    async def subscribe(self, views: Sequence[str]) -> AsyncIterator[bytes]:
        """Outcomes as JSON documents."""
        try:
            async for reply in self._inference.Subscribe(inference_pb2.SubscribeRequest(views=views)):
                yield reply.outcome
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error

    async def status(self, timeout_s: float) -> dict[str, Any]:
        """Status by node id of the node and of all below it. Raises BadFrame where another program listens."""
        try:
            raw = (await self._fleet.Status(fleet_pb2.StatusRequest(), timeout=timeout_s)).status
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error
        nodes = _json(raw, self._address)
        if not isinstance(nodes, dict):
            raise BadFrame(f"{self._address}: its status is not a table; is this a tierline node?")
        return nodes

    async def plans(self, timeout_s: float) -> list[dict[str, Any]]:
        """The Plan in force last, at the root after those before it; see `core.flow.knobs.describe`."""
        try:
            raw = (await self._fleet.Plans(fleet_pb2.PlansRequest(), timeout=timeout_s)).plans
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error
        plans = _json(raw, self._address)
        return [_plan(plan, self._address) for plan in (plans if isinstance(plans, list) else [plans])]

    async def change_plan(self, wanted: PlanChange, timeout_s: float) -> dict[str, Any]:
        """Another Plan for a running hierarchy, as it is in force then. Raises PlanError, UnknownCodec,
        SecurityError."""
        request = fleet_pb2.ChangePlanRequest(
            set=wanted.settings,
            rollback_to=wanted.rollback_to,
            dry_run=wanted.dry_run,
            bundle=wanted.bundle,
            plan=wanted.plan,
            tuning=wanted.tuning,
        )
        try:
            reply = await self._fleet.ChangePlan(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error
        return _plan(_json(reply.plan, self._address), self._address)

    async def put_bundle(self, bundle: Bundle, timeout_s: float) -> int:
        """Bring a Bundle to the root, as far as it is not there; bytes sent. Raises BundleError, SecurityError."""
        offer = fleet_pb2.OfferBundleRequest(manifest=(bundle.folder / MANIFEST).read_bytes())
        num_bytes = 0
        try:
            missing = (await self._fleet.OfferBundle(offer, timeout=timeout_s)).missing
            for digest in missing:
                name = next(name for name, known in bundle.manifest.files.items() if known == digest)
                raw = bundle.read(name)
                await self._fleet.PutFile(_chunks(bundle.digest, digest, raw))
                num_bytes += len(raw)
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error
        return num_bytes

    async def profile(self, wish: ProfileWish) -> AsyncIterator[ProfileStep]:
        """Have a hierarchy measured at its root: progress, then the Profile. Raises PeerRejected, SecurityError,
        BundleError, PlanError, AdmissionRefused."""
        request = fleet_pb2.ProfileRequest(
            nodes=wish.nodes,
            engines=wish.engines,
            batches=wish.batches,
            codecs=wish.codecs,
            run_s=wish.run_s,
            precisions=wish.precisions,
        )
        try:
            async for reply in self._fleet.Profile(request):
                yield ProfileStep(reply.node, reply.state, reply.profile)
        except grpc.aio.AioRpcError as error:
            raise await self._meaning(error) from error

    async def _meaning(self, error: grpc.aio.AioRpcError) -> TierlineError:
        reason = from_rpc(error, self._address)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED and isinstance(reason, PeerRejected):
            return PeerRejected(
                f"{self._address}: UNIMPLEMENTED: no tierline node, one of another version, or one without views "
                "to take images"
            )
        if not isinstance(reason, LinkUnavailable):
            return reason
        if self._tls is not None:
            return await explain_failure(self._address, self._tls.ca.read_bytes(), self._tls)
        return LinkUnavailable(
            f"{self._address}: no node answers here without TLS; is it running, and is this its address?"
        )


def _chunks(bundle: str, digest: str, raw: bytes) -> Iterator[fleet_pb2.FileChunk]:
    yield fleet_pb2.FileChunk(bundle=bundle, digest=digest, data=raw[:CHUNK_BYTES])
    for start in range(CHUNK_BYTES, len(raw), CHUNK_BYTES):
        yield fleet_pb2.FileChunk(data=raw[start : start + CHUNK_BYTES])


def _json(raw: bytes, address: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise BadFrame(f"{address}: its answer is not JSON; is this a tierline node?") from error


def _plan(value: Any, address: str) -> dict[str, Any]:
    if not isinstance(value, dict) or "version" not in value:
        raise BadFrame(f"{address}: answered with something that is no Plan; is this a tierline node?")
    return value


async def ask_plans(address: str, tls: TlsFiles | None = None, *, timeout_s: float = 5.0) -> list[dict[str, Any]]:
    """The Plans a node keeps, that in force last. Raises as `ask_status` does."""
    asker = Asker(address, tls)
    async with asker.channel:
        return await asker.plans(timeout_s)


async def change_plan(
    address: str,
    tls: TlsFiles | None = None,
    *,
    settings: Sequence[str] = (),
    rollback_to: int = 0,
    dry_run: bool = False,
    bundle: Bundle | None = None,
    plan: bytes = b"",
    tuning: bytes = b"",
    timeout_s: float = SWITCH_TIMEOUT_S,
) -> dict[str, Any]:
    """Give a running hierarchy another Plan, at its root: with other knobs, or for another Bundle, which is brought
    there first. `settings` are KEY=VALUE as in cloud.toml's table `[plan]`; `plan` is a whole Plan for that Bundle,
    `tuning` what that was chosen from."""
    asker = Asker(address, tls)
    async with asker.channel:
        if bundle is not None:
            await asker.put_bundle(bundle, timeout_s)
        digest = bundle.digest if bundle is not None else ""
        wanted = PlanChange(tuple(settings), rollback_to, dry_run, digest, plan, tuning)
        return await asker.change_plan(wanted, timeout_s)


async def ask_profile(
    address: str, wish: ProfileWish, tls: TlsFiles | None = None, *, said: Callable[[ProfileStep], None]
) -> Profile:
    """Have a hierarchy measured; `said` hears how far each node is. Raises as `Asker.profile` does, and BadFrame."""
    asker = Asker(address, tls)
    async with asker.channel:
        async for step in asker.profile(wish):
            if step.profile:
                return parse_profile(step.profile, f"what {address} answered")
            said(step)
    raise BadFrame(f"{address}: ended before there was a Profile")


async def ask_status(address: str, tls: TlsFiles | None = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
    """One question: how are you, and everything below you? Raises LinkUnavailable, SecurityError, BadFrame."""
    asker = Asker(address, tls)
    async with asker.channel:
        return await asker.status(timeout_s)
