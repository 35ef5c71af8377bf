"""Rows of `sparse_bitmap` are coded together and come out as if each had been coded alone."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.core.codec.affine import Affine
from tierline.core.codec.raw import Raw
from tierline.core.codec.sparse_bitmap import SparseBitmap
from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import affine, sparse_bitmap
from tierline.kernels.numpy import sparse_bitmap as oracle

INNER = ["raw", "float16", "bfloat16", "float8_e4m3", "float8_e4m3:row", "affine:3", "bitplane", "radix:3", "dithered"]
OPTIONS = ["affine:2:range=mse", "affine:4:range=percentile:percent=80", "affine:3:rounding=stochastic", "topk:0.3"]


def features(num_rows: int, num_values: int) -> Array:
    """Integers of 0 to 2, rows of every density from none to all."""
    rng = np.random.default_rng(num_rows)
    x_BV = rng.integers(1, 3, (num_rows, num_values)).astype(np.float32)
    x_BV[rng.random(x_BV.shape) > np.linspace(0, 1.01, num_rows)[:, None]] = 0
    return x_BV


@pytest.fixture(params=["compiled", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        for module in (affine, sparse_bitmap):
            monkeypatch.setattr(module, "_compiled", lambda: None)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("token", [*INNER, *OPTIONS])
@pytest.mark.parametrize("shape", [(1, 1), (40, 19), (7, 300), (0, 5), (3, 0)], ids=str)
def test_bytes_are_those_of_the_rows_alone(token: str, shape: tuple[int, int]) -> None:
    codec, inner, x_BV = codec_for(f"sparse_bitmap+{token}"), codec_for(token), features(*shape)
    payload = codec.encode(x_BV, seed=5)
    alone = b""
    for row in x_BV:
        alone += np.packbits(row != 0).tobytes()
        if row.any():
            alone += inner.encode(row[row != 0][None], seed=5).data
    assert payload.data == alone
    decoded = codec.decode(payload, TensorSpec("float32", shape[1:]))
    assert np.abs(decoded - x_BV).max(initial=0) <= codec.max_error(x_BV)


class Counting(Raw):
    """How often it is called."""

    num_calls = 0

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        self.num_calls += 1
        return super().encode(x_B, seed=seed)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        self.num_calls += 1
        return super().decode(payload, limit, max_rows=max_rows, out=out)


def test_one_call_codes_what_is_coded_value_by_value() -> None:
    inner, x_BV = Counting(), features(200, 64)
    codec = SparseBitmap(inner)
    codec.decode(codec.encode(x_BV), TensorSpec("float32", (64,)))
    assert inner.num_calls == 2


def test_one_call_codes_equally_long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = Affine.encode

    def counted(self: Affine, x_B: Array, *, seed: int = 0) -> Payload:
        calls.append(len(x_B))
        return encode(self, x_B, seed=seed)

    monkeypatch.setattr(Affine, "encode", counted)
    monkeypatch.setattr(affine, "_compiled", lambda: None)
    codec_for("sparse_bitmap+affine:4").encode(features(200, 8))
    assert len(calls) <= 8 and sum(calls) > 100


@pytest.mark.usefixtures("kernels")
def test_errors_of_single_rows_are_told() -> None:
    codec, x_BV = codec_for("sparse_bitmap+affine:3"), features(6, 9)
    data = bytearray(codec.encode(x_BV).data)
    data[-1] |= 0x80  # the last of 9 codes of 3 bits ends at bit 27 of 32
    with pytest.raises(CorruptPayload, match=r"affine:3: padding bits are set"):
        codec.decode(Payload(codec.token, "float32", x_BV.shape, bytes(data)), TensorSpec("float32", (9,)))
    with pytest.raises(CorruptPayload, match=r"bytes of data are not what the bitmaps of 6 rows need"):
        codec.decode(Payload(codec.token, "float32", x_BV.shape, bytes(data[:-1])), TensorSpec("float32", (9,)))
    x_BV[3, 2] = np.inf
    with pytest.raises(CodecError, match=r"affine:3: a value is NaN, infinite"):
        codec.encode(x_BV)


def test_compiled_bookkeeping_is_the_oracles() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        num_rows, num_values = int(rng.integers(1, 9)), int(rng.integers(1, 200))
        law = (int(rng.integers(0, 9)), int(rng.integers(1, 33)))

        def size(number: int, law: tuple[int, int] = law) -> int:
            return law[0] + (number * law[1] + 7) // 8

        rows = (rng.random((num_rows, num_values)) < rng.random((num_rows, 1))).astype(np.uint8)
        data = b"".join(np.packbits(row).tobytes() + bytes(size(int(row.sum())) if row.any() else 0) for row in rows)
        for found, known in zip(
            sparse_bitmap.walk(data, num_rows, num_values, size, law),
            oracle.walk(data, num_rows, num_values, size),
            strict=True,
        ):
            assert found.tolist() == known.tolist()
        for kernel, words in ((sparse_bitmap, (size, law)), (oracle, (size,))):
            with pytest.raises(ValueError, match="bytes of data are not"):
                kernel.walk(data + b"\0", num_rows, num_values, *words)
