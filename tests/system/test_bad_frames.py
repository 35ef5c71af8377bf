"""Hostile peers against real processes: they are refused, or lose their own link, and the others go on."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tierline.core.link.fleet import PROTOCOL
from tierline.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, tensor_pb2

UNLIMITED = (("grpc.max_send_message_length", -1),)
EXCHANGE = "/tierline.v1.Inference/Exchange"


def frame(**body: Any) -> inference_pb2.Frame:
    return inference_pb2.Frame(seq=1, **body)


def part(epoch: int, seq: int = 0, **over: Any) -> inference_pb2.Part:
    """A good Part of one row of `view-1`, but for `over` in its tensor."""
    values = {"codec": "raw", "dtype": "float32", "shape": [1, 10], "data": bytes(40), **over}
    values.setdefault("crc32", zlib.crc32(values["data"]))
    tensor = tensor_pb2.Tensor(**values)
    named = tensor_pb2.NamedTensor(name="logits", tensor=tensor)
    ids = inference_pb2.SampleIds(origin=["edge"], epoch=[epoch], seq=[seq])
    return inference_pb2.Part(level=0, name="view-1", ids=ids, plan=1, budget_ms=[1000.0], outputs=[named])


def split(good: inference_pb2.Part, **fields: Any) -> inference_pb2.Part:
    good.MergeFrom(inference_pb2.Part(**fields))
    return good


def renamed(good: inference_pb2.Part, **fields: Any) -> inference_pb2.Part:
    for name, value in fields.items():
        setattr(good, name, value)
    return good


async def converse(address: str, raw: Callable[[int], bytes | None]) -> tuple[inference_pb2.Frame | None, Any, str]:
    """Join as `device-1`, open a stream, say `raw(parent's epoch)`; the first answer, or the status of the end."""
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        fleet: Any = fleet_pb2_grpc.FleetStub(channel)
        codecs = ["affine", "bitplane", "float16", "raw"]
        hello = fleet_pb2.Hello(protocol_min=PROTOCOL, protocol_max=PROTOCOL, node="device-1", epoch=7, codecs=codecs)
        welcome = await fleet.Join(hello)
        call: Any = channel.stream_stream(EXCHANGE)()
        opening = inference_pb2.Frame(
            open=inference_pb2.Open(node="device-1", epoch=np.random.default_rng().integers(1 << 40))
        )
        await call.write(opening.SerializeToString())
        assert inference_pb2.Frame.FromString(await call.read()).open.node == "edge"
        said = raw(welcome.epoch)
        if said is not None:
            await call.write(said)
        while (answer := await read(call)) is not None:
            heard = inference_pb2.Frame.FromString(answer)
            if heard.WhichOneof("body") is not None:
                call.cancel()
                return heard, None, ""
        return None, await call.code(), await call.details()


async def read(call: Any) -> bytes | None:
    """The next message; None where the other side has ended the call, whatever its reason."""
    try:
        raw = await call.read()
    except grpc.aio.AioRpcError:
        return None
    return None if raw is grpc.aio.EOF else raw


def talk(live: Any, raw: Callable[[int], bytes | None]) -> tuple[inference_pb2.Frame | None, Any, str]:
    async def bounded() -> Any:
        return await asyncio.wait_for(converse(live.fleet.address("edge"), raw), 20)

    return asyncio.run(bounded())


REFUSED: dict[str, tuple[Callable[[int], inference_pb2.Part], str, str]] = {
    "unknown codec": (lambda e: part(e, codec="gzip"), "unknown_codec", "gzip"),
    "wrong shape": (lambda e: part(e, shape=[1, 9], data=bytes(36)), "shape_mismatch|corrupt_payload", r"9"),
    "wrong dtype": (lambda e: part(e, dtype="float64", data=bytes(80)), "shape_mismatch|corrupt_payload", "float64"),
    "no dtype at all": (lambda e: part(e, dtype="object"), "shape_mismatch|corrupt_payload", "object"),
    "too few bytes": (lambda e: part(e, data=bytes(39)), "corrupt_payload", "39"),
    "too many bytes": (lambda e: part(e, data=bytes(41)), "corrupt_payload", "41"),
    "another plan": (lambda e: renamed(part(e), plan=99), "plan", "plan 99"),
    "another view": (lambda e: renamed(part(e), name="view-9"), "plan", "view-9"),
    "a view of another device": (lambda e: renamed(part(e), name="view-0"), "plan", "view-0"),
    "a level too high": (lambda e: renamed(part(e), level=9), "plan", "level 9"),
}

ENDED: dict[str, tuple[Callable[[int], bytes], grpc.StatusCode, str]] = {
    "no frame": (lambda e: b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "no frame"),
    "half a frame": (
        lambda e: frame(part=part(e)).SerializeToString()[:-20],
        grpc.StatusCode.INVALID_ARGUMENT,
        "no frame|tensor|rows",
    ),
    "a flipped bit": (
        lambda e: frame(part=part(e, crc32=1)).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "checksum differs",
    ),
    "too many rows": (
        lambda e: frame(part=split(part(e), ids=inference_pb2.SampleIds(seq=range(5000)))).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "at most 4096",
    ),
    "rows that differ": (
        lambda e: frame(part=part(e, shape=[2, 10], data=bytes(80))).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        r"shape \[2, 10\] for 1 rows",
    ),
    "a missing number": (
        lambda e: inference_pb2.Frame(seq=5, part=part(e)).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "4 missing",
    ),
    "a huge rank": (
        lambda e: frame(part=part(e, shape=[1] * 30)).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "rank 30",
    ),
    "an oversized frame": (lambda e: bytes((64 << 20) + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_cannot_be_used_are_refused(name: str, live: Any, undisturbed: None) -> None:
    make, code, pattern = REFUSED[name]
    answer, status, details = talk(live, lambda epoch: frame(part=make(epoch)).SerializeToString())
    assert answer is not None, (status, details)
    assert re.fullmatch(code, answer.refused.code), answer
    assert re.search(pattern, answer.refused.message), answer
    assert list(answer.refused.ids.seq) == [0]


@pytest.mark.parametrize("name", ENDED)
def test_a_bad_frame_ends_its_own_link_only(name: str, live: Any, undisturbed: None) -> None:
    make, code, pattern = ENDED[name]
    answer, status, details = talk(live, make)
    assert answer is None
    assert status is code, (status, details)
    assert re.search(pattern, details), details


def test_who_was_not_admitted_gets_no_stream(live: Any, undisturbed: None) -> None:
    async def uninvited(first: bytes) -> tuple[Any, str]:
        async with grpc.aio.insecure_channel(live.fleet.address("edge")) as channel:
            call: Any = channel.stream_stream(EXCHANGE)()
            await call.write(first)
            assert await read(call) is None
            return await call.code(), await call.details()

    stranger = inference_pb2.Frame(open=inference_pb2.Open(node="device-8", epoch=1)).SerializeToString()
    code, details = asyncio.run(uninvited(stranger))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "'device-8' has not joined 'edge'" in details
    code, details = asyncio.run(uninvited(b"GET / HTTP/1.1"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_device_comes_back_after_all_this(live: Any) -> None:
    live.fleet.restart("device-1")
    mark = len(live.news("device-1"))
    live.until("its answers from above", lambda: any(not r["degraded"] for r in live.news("device-1", mark)))
