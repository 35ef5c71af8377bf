from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from tierline.core.errors import AdmissionRefused, ConfigError, ShapeMismatch
from tierline.core.source.api import Api

IMAGE = np.zeros((2, 2, 3), np.uint8)


def test_order_numbers_and_end() -> None:
    async def go() -> None:
        source = Api(view="cam", view_index=0)
        source.submit(IMAGE, seq=7, truth=1)  # before the agent opened it
        await source.open()
        source.submit(IMAGE[:, :, 0])
        source.submit(np.zeros((3, 2, 2), np.float32))
        source.finish()
        first, second, third = [await source.capture() for _ in range(3)]
        assert first is not None and (first.seq, first.truth) == (7, 1)
        assert second is not None and second.seq is None and second.image.shape == (2, 2)
        assert third is not None and third.image.dtype == np.float32
        assert await source.capture() is None
        with pytest.raises(AdmissionRefused, match="closed"):
            source.submit(IMAGE)

    asyncio.run(go())


def test_another_thread_wakes_a_waiting_capture() -> None:
    async def go() -> None:
        source = Api(view="cam", view_index=0)
        await source.open()
        for seq in range(20):
            waiting = asyncio.create_task(source.capture())
            await asyncio.sleep(0)
            thread = threading.Thread(target=source.submit, args=(IMAGE, seq))
            thread.start()
            capture = await asyncio.wait_for(waiting, 5)
            assert capture is not None and capture.seq == seq
            thread.join()
        waiting = asyncio.create_task(source.capture())
        await asyncio.sleep(0)
        await source.close()
        assert await asyncio.wait_for(waiting, 5) is None

    asyncio.run(go())


def test_a_full_queue_refuses_and_room_returns() -> None:
    async def go() -> None:
        source = Api(view="cam", view_index=0, depth=2)
        await source.open()
        source.submit(IMAGE)
        source.submit(IMAGE)
        with pytest.raises(AdmissionRefused, match="2 images are waiting"):
            source.submit(IMAGE)
        await source.capture()
        source.submit(IMAGE)
        assert source.num_dropped == 0

    asyncio.run(go())


@pytest.mark.parametrize("image", [IMAGE.astype(np.int64), IMAGE[0, 0], np.zeros((2, 2), np.float32)])
def test_other_arrays_are_refused(image: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ShapeMismatch, match="view 'cam'"):
        Api(view="cam", view_index=0).submit(image)


def test_bad_options() -> None:
    with pytest.raises(ConfigError):
        Api(location="x", view="cam", view_index=0)
    with pytest.raises(ConfigError):
        Api(view="cam", view_index=0, depth=0)
