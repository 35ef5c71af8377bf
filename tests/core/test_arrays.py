from __future__ import annotations

import numpy as np
import pytest

from tierline.core.arrays import Params
from tierline.core.errors import ShapeMismatch


def params(scale: float = 1.0) -> Params:
    return Params.from_arrays(
        {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3) * scale,
            "b": np.array([10.0, 20.0]) * scale,
            "s": np.float32(scale)[()] * np.ones(()),
        },
        buffers={"count": np.array([7], np.int64)},
    )


def test_views_share_one_buffer_in_a_fixed_order() -> None:
    p = params()
    assert list(p) == ["w", "b", "s"] == [name for name, _ in p.items()]
    assert len(p) == 3
    assert p.flat.dtype == np.float32
    assert p.flat.tolist() == [0, 1, 2, 3, 4, 5, 10, 20, 1]
    p["w"][1, 2] = 99
    assert p.flat[5] == 99
    p.flat[6] = -1
    assert p["b"].tolist() == [-1, 20]
    assert p["s"].shape == ()


def test_from_arrays_copies() -> None:
    source = np.ones(3, np.float32)
    p = Params.from_arrays({"w": source})
    p["w"][:] = 5
    assert source.tolist() == [1, 1, 1]


def test_a_given_buffer_is_viewed_not_copied() -> None:
    flat = np.zeros(4, np.float32)
    p = Params((("w", (2, 2)),), flat)
    p["w"][0, 1] = 3
    assert flat.tolist() == [0, 3, 0, 0]


def test_arithmetic() -> None:
    p, q = params(), params(2.0)
    assert (p + q).flat.tolist() == (p.flat * 3).tolist()
    assert (q - p).flat.tolist() == p.flat.tolist()
    assert (p * q).flat.tolist() == (p.flat * q.flat).tolist()
    assert (p * 0.5).flat.tolist() == (0.5 * p).flat.tolist() == (p.flat / 2).tolist()
    assert (p * 0.1).flat.dtype == np.float32
    assert p.zeros_like().flat.tolist() == [0] * 9
    assert p.flat.tolist() == params().flat.tolist()


def test_axpy_works_in_place() -> None:
    p, q = params(), params(2.0)
    view = p["w"]
    p.axpy(-0.5, q)
    assert p.flat.tolist() == [0] * 9
    assert view.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert q.flat.tolist() == params(2.0).flat.tolist()


def test_dot_and_norm_accumulate_in_float64() -> None:
    p = Params.from_arrays({"w": np.array([3.0, 4.0], np.float32)})
    assert p.norm() == 5.0
    assert p.dot(p * 2.0) == 50.0
    many = Params.from_arrays({"w": np.full(1_000_000, 0.1, np.float32)})
    assert many.dot(many) == pytest.approx(1_000_000 * float(np.float32(0.1)) ** 2, rel=1e-12)


def test_buffers_stay_apart() -> None:
    p = params()
    q = p * 2.0
    assert q.buffers["count"].tolist() == [7]
    assert q.buffers["count"].dtype == np.int64
    copied = p.copy()
    copied.buffers["count"][0] = 8
    copied.flat[0] = 5
    assert p.buffers["count"].tolist() == [7]
    assert p.flat[0] == 0


def test_tensors_that_are_not_floats_belong_in_buffers() -> None:
    with pytest.raises(ShapeMismatch, match=r"'steps' is int64.*buffers="):
        Params.from_arrays({"steps": np.zeros(1, np.int64)})


def test_layouts_must_be_equal() -> None:
    a = Params.from_arrays({"w": np.zeros((2, 3)), "b": np.zeros(2)})
    cases = [
        ({"w": np.zeros((3, 2)), "b": np.zeros(2)}, r"'w' is float32\[2, 3\] here and float32\[3, 2\] there"),
        ({"w": np.zeros((2, 3))}, r"'b' is float32\[2\] here and absent there"),
        ({"w": np.zeros((2, 3)), "b": np.zeros(2), "c": np.zeros(1)}, "'c' is absent here"),
        ({"b": np.zeros(2), "w": np.zeros((2, 3))}, "another order"),
    ]
    for arrays, message in cases:
        b = Params.from_arrays(arrays)
        operations = (
            lambda b=b: a + b,
            lambda b=b: a - b,
            lambda b=b: a * b,
            lambda b=b: a.dot(b),
            lambda b=b: a.axpy(1, b),
        )
        for operation in operations:
            with pytest.raises(ShapeMismatch, match=message):
                operation()


def test_a_buffer_must_fit_its_layout() -> None:
    for flat in (np.zeros(3, np.float32), np.zeros(4), np.zeros((2, 2), np.float32)):
        with pytest.raises(ShapeMismatch, match=r"float32\[4\]"):
            Params((("w", (2, 2)),), flat)
    with pytest.raises(ShapeMismatch, match="twice"):
        Params((("w", (2,)), ("w", (2,))), np.zeros(4, np.float32))


def test_no_tensors_at_all() -> None:
    empty = Params.from_arrays({})
    assert len(empty) == 0
    assert (empty + empty).norm() == 0.0
