"""The Open Inference Protocol as its clients speak it, over a real channel, in front of a model made of arithmetic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tierline.core.errors import AdmissionRefused
from tierline.core.link.open_inference import MAX_ROWS, OUTPUTS, SERVICE, Card, Verdict, open_inference_handler
from tierline.core.types import Answer, Array
from tierline.v1 import open_inference_pb2 as pb
from tierline.v1 import open_inference_pb2_grpc

Request = pb.ModelInferRequest


class Sums:
    """The label of a row is the sum of its pixels over all views."""

    ready = True

    def card(self) -> Card | None:
        return Card("sums", "3", ("left", "right"), 3) if self.ready else None

    async def infer(self, images: Mapping[str, Array]) -> Sequence[Verdict]:
        totals = sum(image.reshape(len(image), -1).sum(axis=1, dtype=np.int64) for image in images.values())
        if 999 in (rows := np.asarray(totals).tolist()):
            raise AdmissionRefused("too much")
        return [Verdict(Answer(row, f"é{row}", 0.5), "edge", len(images) < 2) for row in rows]


def ask(use: Callable[[Any], Any], model: Sums | None = None) -> Any:
    async def go() -> Any:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((open_inference_handler(model or Sums(), "1.2"),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await use(open_inference_pb2_grpc.GRPCInferenceServiceStub(channel))
        finally:
            await server.stop(0)

    return asyncio.run(go())


def tensor(name: str, values: Array, datatype: str = "UINT8") -> Request.InferInputTensor:
    return Request.InferInputTensor(name=name, datatype=datatype, shape=values.shape)


LEFT = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
RIGHT = np.full((2, 1, 3), 200, np.uint8)
SUMS = [int(left.sum() + right.sum()) for left, right in zip(LEFT, RIGHT.astype(int), strict=True)]


def request(**changes: Any) -> Request:
    good: dict[str, Any] = {
        "model_name": "sums",
        "inputs": [tensor("left", LEFT), tensor("right", RIGHT)],
        "raw_input_contents": [LEFT.tobytes(), RIGHT.tobytes()],
    }
    return Request(**{**good, **changes})


def test_the_service_has_the_names_of_the_specification() -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    numbers = {field.name: field.number for field in Request.DESCRIPTOR.fields}
    assert numbers == {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    }


def test_what_there_is() -> None:
    async def use(stub: Any) -> Any:
        return (
            (await stub.ServerLive(pb.ServerLiveRequest())).live,
            (await stub.ServerReady(pb.ServerReadyRequest())).ready,
            await stub.ServerMetadata(pb.ServerMetadataRequest()),
            [
                (await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready
                for name, version in (("sums", ""), ("sums", "3"), ("sums", "4"), ("other", ""))
            ],
            await stub.ModelMetadata(pb.ModelMetadataRequest(name="sums")),
        )

    live, ready, server, models, model = ask(use)
    assert (live, ready, server.name, server.version) == (True, True, "tierline", "1.2")
    assert models == [True, True, False, False]
    assert (model.name, list(model.versions), model.platform) == ("sums", ["3"], "tierline")
    assert [(i.name, i.datatype, list(i.shape)) for i in model.inputs] == [
        ("left", "UINT8", [-1, -1, -1, 3]),
        ("right", "UINT8", [-1, -1, -1, 3]),
    ]
    assert {o.name: o.datatype for o in model.outputs} == OUTPUTS


def test_before_there_is_a_plan() -> None:
    async def use(stub: Any) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ModelInfer(request())
        live = (await stub.ServerLive(pb.ServerLiveRequest())).live
        return live, (await stub.ServerReady(pb.ServerReadyRequest())).ready, refused.value.code()

    model = Sums()
    model.ready = False
    assert ask(use, model) == (True, False, grpc.StatusCode.FAILED_PRECONDITION)


def test_raw_and_typed_contents_give_the_same() -> None:
    async def use(stub: Any) -> Any:
        typed = request(raw_input_contents=[])
        for given, values in zip(typed.inputs, (LEFT, RIGHT), strict=True):
            given.contents.uint_contents.extend(values.ravel().tolist())
        return await stub.ModelInfer(request(id="a7")), await stub.ModelInfer(typed)

    raw, typed = ask(use)
    assert (raw.model_name, raw.model_version, raw.id) == ("sums", "3", "a7")
    assert [o.name for o in raw.outputs] == list(OUTPUTS)
    assert {tuple(o.shape) for o in raw.outputs} == {(2,)}
    contents = dict(zip(OUTPUTS, raw.raw_output_contents, strict=True))
    assert np.frombuffer(contents["index"], "<i8").tolist() == SUMS
    assert np.frombuffer(contents["confidence"], "<f4").tolist() == [0.5, 0.5]
    assert contents["exit"] == b"\4\0\0\0edge" * 2
    assert contents["degraded"] == b"\0\0"
    words = [f"é{row}".encode() for row in SUMS]
    assert contents["label"] == b"".join(len(word).to_bytes(4, "little") + word for word in words)
    assert list(typed.raw_output_contents) == list(raw.raw_output_contents)


def test_outputs_may_be_chosen_and_views_left_out() -> None:
    async def use(stub: Any) -> Any:
        outputs = [Request.InferRequestedOutputTensor(name=name) for name in ("degraded", "index")]
        less = {"inputs": [tensor("left", LEFT)], "raw_input_contents": [LEFT.tobytes()]}
        return await stub.ModelInfer(request(outputs=outputs, **less))

    reply = ask(use)
    assert [o.name for o in reply.outputs] == ["degraded", "index"]
    assert reply.raw_output_contents[0] == b"\1\1"
    assert np.frombuffer(reply.raw_output_contents[1], "<i8").tolist() == [int(x.sum()) for x in LEFT]


def spoiled(**fields: Any) -> Request:
    bad = request()
    for name, value in fields.items():
        getattr(bad.inputs[0], name).MergeFrom(value) if name == "contents" else setattr(bad.inputs[0], name, value)
    return bad


def shaped(*shape: int) -> Request:
    bad = request()
    bad.inputs[0].shape[:] = shape
    return bad


BAD: dict[str, tuple[Request, grpc.StatusCode, str]] = {
    "another model": (request(model_name="x"), grpc.StatusCode.NOT_FOUND, "there is 'sums', version '3'"),
    "another version": (request(model_version="9"), grpc.StatusCode.NOT_FOUND, "version '9'"),
    "another dtype": (spoiled(datatype="FP32"), grpc.StatusCode.INVALID_ARGUMENT, "expected UINT8"),
    "another view": (spoiled(name="top"), grpc.StatusCode.INVALID_ARGUMENT, "'top': unknown or given twice"),
    "one view twice": (spoiled(name="right"), grpc.StatusCode.INVALID_ARGUMENT, "'right': unknown or given twice"),
    "another rank": (shaped(2, 12), grpc.StatusCode.INVALID_ARGUMENT, r"got UINT8 \[2, 12\]"),
    "no rows": (shaped(0, 2, 2, 3), grpc.StatusCode.INVALID_ARGUMENT, r"\[0, 2, 2, 3\]"),
    "a negative size": (shaped(-2, -2, 2, 3), grpc.StatusCode.INVALID_ARGUMENT, r"\[-2, -2, 2, 3\]"),
    "too many rows": (shaped(MAX_ROWS + 1, 1, 1), grpc.StatusCode.INVALID_ARGUMENT, "is over 256 rows"),
    "too large": (shaped(1, 1 << 40, 1 << 40), grpc.StatusCode.INVALID_ARGUMENT, "is over"),
    "too few values": (shaped(2, 2, 3, 3), grpc.StatusCode.INVALID_ARGUMENT, "24 values for"),
    "rows that differ": (shaped(4, 2, 1, 3), grpc.StatusCode.INVALID_ARGUMENT, r"inputs of \[2, 4\] rows"),
    "nothing": (
        request(inputs=[], raw_input_contents=[]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "no input; give left, right",
    ),
    "raw for some": (request(raw_input_contents=[b""]), grpc.StatusCode.INVALID_ARGUMENT, "1 raw_input_contents for 2"),
    "values twice": (
        spoiled(contents=pb.InferTensorContents(uint_contents=[1])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "given twice, in contents and raw",
    ),
    "no UINT8": (
        Request(
            model_name="sums",
            inputs=[
                Request.InferInputTensor(
                    name="left", datatype="UINT8", shape=[1, 1, 1], contents=pb.InferTensorContents(uint_contents=[256])
                )
            ],
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "256 is no UINT8",
    ),
    "another output": (
        request(outputs=[Request.InferRequestedOutputTensor(name="scores")]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "output 'scores': there is none; the model gives index, label",
    ),
    "an error of the model": (
        request(inputs=[tensor("left", np.zeros((1, 1, 4)))], raw_input_contents=[bytes([255, 255, 255, 234])]),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "too much",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_its_reason(name: str) -> None:
    bad, code, message = BAD[name]

    async def use(stub: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match=message) as refused:
            await stub.ModelInfer(bad)
        assert refused.value.code() is code
        assert len((await stub.ModelInfer(request())).outputs) == 5

    ask(use)
