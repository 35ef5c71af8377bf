"""Golden bytes: what a codec wrote when it was released, it must write and read for ever.

Each file holds inputs and coded data in hexadecimal, little-endian. A case may name its own token, with options, and
parameters; a seed among these is the one it was coded with. A new codec needs a file here.
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


def cases() -> list[Any]:
    loaded = []
    for path in sorted(GOLDEN.glob("codec_*.json")):
        golden = json.loads(path.read_text())
        loaded += [
            pytest.param(case.get("codec", golden["codec"]), case, id=f"{golden['codec']}-{case['name']}")
            for case in golden["cases"]
        ]
    return loaded


def array(case: dict[str, Any], key: str) -> np.ndarray:
    on_wire = np.dtype(case["dtype"]).newbyteorder("<")
    return np.frombuffer(bytes.fromhex(case[key]), on_wire).reshape(case["shape"]).astype(case["dtype"])


@pytest.mark.parametrize(("codec", "case"), cases())
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
    assert decoded.tobytes() == array(case, "output").tobytes()


def test_every_codec_has_golden_bytes() -> None:
    assert tuple(path.stem.removeprefix("codec_") for path in sorted(GOLDEN.glob("codec_*.json"))) == catalog.names(
        "codec"
    )
