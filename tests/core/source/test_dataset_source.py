from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierline.core.clock import ManualClock
from tierline.core.errors import DataError
from tierline.core.protocols import Capture
from tierline.core.source._pace import Pace
from tierline.core.source.dataset import Dataset

IMAGES = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
VIEWS = np.arange(4 * 2 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 2, 3)


def take(path: Path, limit: int = 99, view_index: int = 0, **options: Any) -> list[Capture]:
    async def go() -> list[Capture]:
        source = Dataset(location=str(path), view="cam", view_index=view_index, **options)
        await source.open()
        captures = []
        while len(captures) < limit and (capture := await source.capture()) is not None:
            captures.append(capture)
        assert source.num_dropped == 0
        await source.close()
        assert await source.capture() is None
        return captures

    return asyncio.run(go())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["mapped", "loaded"])
def test_whole_images_in_order_with_truth(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "d.npz"
    save(path, images=IMAGES, labels=np.array([3, 1, 4, 1, 5]))
    got = take(path)
    assert [c.seq for c in got] == [0, 1, 2, 3, 4]
    assert [c.truth for c in got] == [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(np.stack([c.image for c in got]), IMAGES)
    assert all(type(c.image) is np.ndarray and c.capture_ns >= 0 for c in got)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["mapped", "loaded"])
def test_a_view_takes_its_column_and_skips_where_absent(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "d.npz"
    present = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
    save(path, views=VIEWS, present=present)
    for view_index, seqs in ((0, [0, 1, 3]), (1, [0, 2, 3])):
        got = take(path, view_index=view_index)
        assert [c.seq for c in got] == seqs
        assert {c.truth for c in got} == {None}
        for c in got:
            np.testing.assert_array_equal(c.image, VIEWS[c.seq, view_index])


def test_fortran_order_is_mapped_rightly(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.asfortranarray(IMAGES))
    np.testing.assert_array_equal(np.stack([c.image for c in take(tmp_path / "d.npz")]), IMAGES)


def test_loop_runs_on_and_range_wraps(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES)
    got = take(tmp_path / "d.npz", limit=12, loop=True)
    assert [c.seq for c in got] == list(range(12))
    np.testing.assert_array_equal(got[7].image, IMAGES[2])
    got = take(tmp_path / "d.npz", limit=5, loop=True, start=3, count=2)
    assert [c.seq for c in got] == [3, 4, 5, 6, 7]
    np.testing.assert_array_equal(np.stack([c.image for c in got]), IMAGES[[3, 4, 3, 4, 3]])
    assert [c.seq for c in take(tmp_path / "d.npz", start=1, count=2)] == [1, 2]
    assert [c.seq for c in take(tmp_path / "d.npz", start=3, count=50)] == [3, 4]


def test_a_view_that_is_always_absent_ends_even_when_looping(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", views=VIEWS, present=np.array([[1, 0]] * 4, bool))
    assert take(tmp_path / "d.npz", view_index=1, loop=True) == []


def test_the_schedule_is_absolute() -> None:
    clock = ManualClock(1000)
    slept: list[float] = []

    async def sleep(s: float) -> None:
        slept.append(s)
        clock.advance(round(s * 1e9))

    async def go() -> None:
        pace = Pace(100.0, clock=clock, sleep=sleep)
        await pace.wait(0)
        clock.advance(4_000_000)  # the consumer took 4 ms
        await pace.wait(1)
        clock.advance(25_000_000)  # and now 25: items 2 and 3 are late, nothing waits
        await pace.wait(2)
        await pace.wait(3)
        await pace.wait(4)

    asyncio.run(go())
    assert slept == pytest.approx([0.006, 0.005])
    assert clock.now_ns() == 1000 + 40_000_000


def test_rate_zero_never_waits() -> None:
    async def never(_: float) -> None:
        raise AssertionError("waited")

    asyncio.run(Pace(0.0, sleep=never).wait(7))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "neither `images` nor `views`"),
        ({"images": IMAGES.astype(np.float32)}, "must be uint8"),
        ({"images": IMAGES[0]}, "must be uint8 of shape"),
        ({"images": IMAGES, "labels": np.zeros(4, int)}, "`labels` \\[4\\] does not fit 5 samples"),
        ({"views": VIEWS[:, :1]}, "no column 1, which view 'cam' should be"),
        ({"images": np.array([{}], object)}, "not a readable"),
        ({"images": IMAGES[:0]}, "past its 0 samples"),
    ],
)
def test_malformed_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        take(tmp_path / "d.npz", view_index=1)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        take(tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match="not a readable"):
        take(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", images=IMAGES)
    with pytest.raises(DataError, match="past its 5 samples"):
        take(tmp_path / "e.npz", start=5)
