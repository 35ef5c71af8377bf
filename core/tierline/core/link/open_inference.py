"""The Open Inference Protocol, version 2 (`inference.GRPCInferenceService`): any client of it can ask a hierarchy.

The hierarchy is one model. Inputs: one raw image per view, UINT8 of shape (B, H, W, C) or (B, H, W). Outputs, each of
shape (B): `index` INT64, `label` BYTES, `confidence` FP32 (the softmax probability of that class), `exit` BYTES (which
exit answered), `degraded` BOOL. Scores of the other classes are no outputs: answers climb down links without them.

Specification: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

from tierline.core.errors import PlanError, ShapeMismatch, TierlineError
from tierline.core.link.status import CODE_KEY, abort
from tierline.core.types import Answer, Array
from tierline.v1 import open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
PLATFORM = "tierline"
MAX_INPUT_BYTES = 64 << 20
MAX_ROWS = 256
"""Samples of one request."""

OUTPUTS = {"index": "INT64", "label": "BYTES", "confidence": "FP32", "exit": "BYTES", "degraded": "BOOL"}
_DTYPES = {"INT64": "<i8", "FP32": "<f4", "BOOL": "?"}


@dataclass(frozen=True, slots=True)
class Card:
    """What clients see of a model."""

    name: str
    version: str
    views: tuple[str, ...]
    channels: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The hierarchy's answer to one row."""

    answer: Answer
    exit: str
    degraded: bool


class Model(Protocol):
    """What answers requests."""

    def card(self) -> Card | None:
        """None as long as nothing can be answered."""
        ...

    async def infer(self, images: Mapping[str, Array]) -> Sequence[Verdict]:
        """One verdict per row of uint8 images (B, H, W[, C]) by view. Raises TierlineError."""
        ...


def open_inference_handler(model: Model, version: str) -> grpc.GenericRpcHandler:
    """The service for one model; `version` is tierline's."""
    service = _Service(model, version)
    methods: dict[str, tuple[Any, Any]] = {
        "ServerLive": (service.server_live, pb.ServerLiveRequest),
        "ServerReady": (service.server_ready, pb.ServerReadyRequest),
        "ServerMetadata": (service.server_metadata, pb.ServerMetadataRequest),
        "ModelReady": (service.model_ready, pb.ModelReadyRequest),
        "ModelMetadata": (service.model_metadata, pb.ModelMetadataRequest),
        "ModelInfer": (service.model_infer, pb.ModelInferRequest),
    }
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            name: grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=request.FromString, response_serializer=_to_bytes
            )
            for name, (method, request) in methods.items()
        },
    )


class _Service:
    def __init__(self, model: Model, version: str) -> None:
        self._model = model
        self._version = version

    async def server_live(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._model.card() is not None)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=PLATFORM, version=self._version)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        card = self._model.card()
        return pb.ModelReadyResponse(ready=card is not None and _is_meant(card, request.name, request.version))

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        card = await self._find(request.name, request.version, context)
        reply = pb.ModelMetadataResponse(name=card.name, versions=[card.version], platform=PLATFORM)
        for view in card.views:
            reply.inputs.add(name=view, datatype="UINT8", shape=[-1, -1, -1, card.channels])
        for name, datatype in OUTPUTS.items():
            reply.outputs.add(name=name, datatype=datatype, shape=[-1])
        return reply

    async def model_infer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        card = await self._find(request.model_name, request.model_version, context)
        try:
            wanted = _wanted(request)
            verdicts = await self._model.infer(_images(request, card))
        except TierlineError as error:
            await abort(context, error)
        reply = pb.ModelInferResponse(model_name=card.name, model_version=card.version, id=request.id)
        for name in wanted:
            reply.outputs.add(name=name, datatype=OUTPUTS[name], shape=[len(verdicts)])
            reply.raw_output_contents.append(_raw(name, verdicts))
        return reply

    async def _find(self, name: str, version: str, context: Any) -> Card:
        card = self._model.card()
        if card is None:
            await abort(context, PlanError("this node has no Plan yet"))
        if not _is_meant(card, name, version):
            what = f"model {name!r}" + (f", version {version!r}" if version else "")
            details = f"{what}: not served here; there is {card.name!r}, version {card.version!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, details, trailing_metadata=((CODE_KEY, PlanError.code),))
        return card


def _is_meant(card: Card, name: str, version: str) -> bool:
    return name == card.name and version in ("", card.version)


def _wanted(request: pb.ModelInferRequest) -> list[str]:
    """The outputs that are asked for; all where none is named."""
    names = [output.name for output in request.outputs]
    for name in names:
        if name not in OUTPUTS:
            raise ShapeMismatch(f"output {name!r}: there is none; the model gives {', '.join(OUTPUTS)}")
    return names or list(OUTPUTS)


def _images(request: pb.ModelInferRequest, card: Card) -> dict[str, Array]:
    """The input tensors, checked before anything is copied. Raises ShapeMismatch."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ShapeMismatch(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
    images: dict[str, Array] = {}
    for position, tensor in enumerate(request.inputs):
        if tensor.name not in card.views or tensor.name in images:
            raise ShapeMismatch(f"input {tensor.name!r}: unknown or given twice; the views are {', '.join(card.views)}")
        images[tensor.name] = _image(tensor, raw[position] if raw else None)

    rows = {len(image) for image in images.values()}
    if len(rows) != 1:
        raise ShapeMismatch(f"inputs of {sorted(rows)} rows" if rows else f"no input; give {', '.join(card.views)}")
    return images


def _image(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Array:
    shape, name = tuple(tensor.shape), tensor.name
    if tensor.datatype != "UINT8" or len(shape) not in (3, 4) or min(shape) < 1:
        raise ShapeMismatch(f"input {name!r}: expected UINT8 (B, H, W[, C]), got {tensor.datatype} {list(shape)}")
    if shape[0] > MAX_ROWS or math.prod(shape) > MAX_INPUT_BYTES:
        raise ShapeMismatch(f"input {name!r}: {list(shape)} is over {MAX_ROWS} rows or {MAX_INPUT_BYTES} bytes")
    if raw is not None and tensor.HasField("contents"):
        raise ShapeMismatch(f"input {name!r}: its values are given twice, in contents and raw_input_contents")
    values = tensor.contents.uint_contents
    num_values = len(values if raw is None else raw)
    if num_values != math.prod(shape):
        raise ShapeMismatch(f"input {name!r}: {num_values} values for {list(shape)}")
    if raw is not None:
        return np.frombuffer(raw, np.uint8).reshape(shape)
    wide = np.array(values, np.uint32)
    if wide.max() > 255:
        raise ShapeMismatch(f"input {name!r}: {wide.max()} is no UINT8")
    return wide.astype(np.uint8).reshape(shape)


def _raw(name: str, verdicts: Sequence[Verdict]) -> bytes:
    """One output as the protocol's raw bytes; BYTES elements each follow their length in four bytes."""
    found: list[Any] = [
        getattr(verdict if name in ("exit", "degraded") else verdict.answer, name) for verdict in verdicts
    ]
    if OUTPUTS[name] != "BYTES":
        return np.array(found, _DTYPES[OUTPUTS[name]]).tobytes()
    words = [str(word).encode() for word in found]
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def _to_bytes(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
