"""`Inference.Infer` and `Inference.Subscribe`: a program asks a node that hosts views, or listens to its outcomes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import numpy as np

from tierline.core.coding import codec_for
from tierline.core.errors import AdmissionRefused, PlanError, ShapeMismatch, TierlineError
from tierline.core.link.status import abort
from tierline.core.protocols import Outcome
from tierline.core.telemetry.record import outcome_line
from tierline.core.types import Array, NodeId, SampleId, TensorSpec
from tierline.core.wire import tensor_from_wire
from tierline.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from tierline.edge.agent import Agent

MAX_IMAGE_BYTES = 64 << 20
MAX_REQUESTS = 256
"""Infer calls answered at once; more are refused."""


class Access:
    """What programs may ask of a running agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._counter = itertools.count()
        self._num_open = 0

    def handlers(self) -> dict[str, Any]:
        """Handlers to be added to the Inference service."""
        return {
            "Infer": grpc.unary_unary_rpc_method_handler(
                self.infer,
                request_deserializer=pb.InferRequest.FromString,
                response_serializer=pb.InferReply.SerializeToString,
            ),
            "Subscribe": grpc.unary_stream_rpc_method_handler(
                self.subscribe,
                request_deserializer=pb.SubscribeRequest.FromString,
                response_serializer=pb.InferReply.SerializeToString,
            ),
        }

    async def infer(self, request: pb.InferRequest, context: Any) -> pb.InferReply:
        """Run the images of one sample; answers when the last of its views has its outcome."""
        try:
            images = {view: _image(view, tensor) for view, tensor in request.images.items()}
            seq = request.seq if request.HasField("seq") else None
            return pb.InferReply(outcome=outcome_line(await self.answer(images, seq, request.budget_ms)))
        except TierlineError as error:
            await abort(context, error)

    async def answer(self, images: Mapping[str, Array], number: int | None, budget_ms: float) -> Outcome:
        """Run the images of one sample; `number` joins it with other nodes' views. Raises TierlineError."""
        if self._num_open >= MAX_REQUESTS:
            raise AdmissionRefused(f"{MAX_REQUESTS} requests are being answered; try again")
        self._num_open += 1
        try:
            return await self._run(images, number, budget_ms)
        finally:
            self._num_open -= 1

    async def _run(self, images: Mapping[str, Array], number: int | None, budget_ms: float) -> Outcome:
        node, cameras = self._agent.node, self._agent.cameras
        if node.flow is None or node.plan is None:
            raise PlanError(f"{node.id!r} has no Plan yet")
        hosted = node.flow.placement.views
        wrong = sorted(set(images) - set(hosted))
        if wrong or not images:
            raise PlanError(
                f"{node.id!r} hosts the views {', '.join(hosted) or 'none'}, not {', '.join(wrong) or 'nothing'}"
            )
        seq = next(self._counter) if number is None else number
        sample = self._fresh(seq) if number is None else SampleId(*node.minter, seq)
        waiting, outcome = set(images), None
        queue = cameras.subscribe()
        try:
            for view, image in images.items():
                cameras.expect(view, sample)
                try:
                    await node.capture(view, seq, image, capture_ns=0, truth=None, budget_ms=budget_ms, id_=sample)
                except TierlineError:
                    cameras.forget(view, sample)
                    raise
            while waiting:
                outcome = await queue.get()
                if outcome.id == sample:
                    waiting.discard(outcome.view)
        finally:
            cameras.unsubscribe(queue)
        assert outcome is not None
        return outcome

    def _fresh(self, seq: int) -> SampleId:
        """An id of our own: other nodes' views cannot join it."""
        node = self._agent.node
        return SampleId(NodeId(f"{node.id}:api"), node.epoch, seq)

    async def subscribe(self, request: pb.SubscribeRequest, context: Any) -> AsyncIterator[pb.InferReply]:
        """Outcomes until the caller goes."""
        cameras = self._agent.cameras
        wanted = set(request.views)
        queue = cameras.subscribe()
        try:
            while True:
                outcome = await queue.get()
                if not wanted or outcome.view in wanted:
                    yield pb.InferReply(outcome=outcome_line(outcome))
        except asyncio.CancelledError:
            return
        finally:
            cameras.unsubscribe(queue)


def _image(view: str, tensor: Any) -> Array:
    """A raw image from a request: uint8 HW or HWC."""
    payload = tensor_from_wire(tensor)
    if payload.dtype != "uint8" or len(payload.shape) not in (2, 3):
        raise ShapeMismatch(
            f"view {view!r}: expected a uint8 image HW or HWC, got {payload.dtype}{list(payload.shape)}"
        )
    spec = TensorSpec("uint8", payload.shape[1:])
    if spec.nbytes(payload.shape[0]) > MAX_IMAGE_BYTES:
        raise ShapeMismatch(f"view {view!r}: an image of {list(payload.shape)} is over {MAX_IMAGE_BYTES} bytes")
    return np.asarray(codec_for(payload.codec).decode(payload, spec, max_rows=MAX_IMAGE_BYTES))
