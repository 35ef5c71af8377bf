"""Golden bytes: what a codec wrote when it was released, it must write and read for ever.

Each file holds inputs and coded data in hexadecimal, little-endian. A new codec needs a file here. `codec` is the
token, of the file or of a case. Where a library writes the bytes, its next version may write others that mean the
same: such files say `"written_by": "a library"` and are only read; images then come out within `tolerance` levels,
since decoders of lossy images may round as they like.
A case's `params` are the payload's; a seed among them is the one it was coded with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.coding import codec_for
from tierline.core.types import Payload, TensorSpec

GOLDEN = Path(__file__).parent / "golden"


def files() -> dict[str, Any]:
    return {path.stem.removeprefix("codec_"): json.loads(path.read_text()) for path in GOLDEN.glob("codec_*.json")}


def cases(*, written_here: bool = False) -> list[Any]:
    return [
        pytest.param(case.get("codec", golden["codec"]), case, id=f"{name}-{case['name']}")
        for name, golden in sorted(files().items())
        if not (written_here and "written_by" in golden)
        for case in golden["cases"]
    ]


def array(case: dict[str, Any], key: str) -> np.ndarray:
    on_wire = np.dtype(case["dtype"]).newbyteorder("<")
    return np.frombuffer(bytes.fromhex(case[key]), on_wire).reshape(case["shape"]).astype(case["dtype"])


@pytest.mark.parametrize(("codec", "case"), cases(written_here=True))
def test_writes_the_golden_bytes(codec: str, case: dict[str, Any]) -> None:
    params = case.get("params", {})
    payload = codec_for(codec).encode(array(case, "input"), seed=params.get("seed", 0))
    assert payload.data.hex() == case["data"]
    assert (payload.codec, payload.dtype, list(payload.shape)) == (codec, case["dtype"], case["shape"])
    assert dict(payload.params) == params


@pytest.mark.parametrize(("codec", "case"), cases())
def test_reads_the_golden_bytes(codec: str, case: dict[str, Any]) -> None:
    shape = tuple(case["shape"])
    payload = Payload(codec, case["dtype"], shape, bytes.fromhex(case["data"]), case.get("params", {}))
    decoded = codec_for(codec).decode(payload, TensorSpec(case["dtype"], shape[1:]))
    expected = array(case, "output")
    if tolerance := case.get("tolerance", 0):
        assert np.abs(decoded.astype(int) - expected).max() <= tolerance
    else:
        assert decoded.tobytes() == expected.tobytes()


def test_every_codec_has_golden_bytes() -> None:
    assert tuple(sorted(files())) == catalog.names("codec")
