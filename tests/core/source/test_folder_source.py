from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tierline.core.errors import DataError
from tierline.core.protocols import Capture
from tierline.core.source.folder import Folder


def take(path: Path, limit: int = 99, loop: bool = False) -> list[Capture]:
    async def go() -> list[Capture]:
        source = Folder(location=str(path), view="cam", view_index=0, loop=loop)
        await source.open()
        captures = []
        while len(captures) < limit and (capture := await source.capture()) is not None:
            captures.append(capture)
        await source.close()
        assert await source.capture() is None
        return captures

    return asyncio.run(go())


def save(path: Path, value: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), value if mode in ("L", "1") else (value,) * len(mode)).save(path)


def test_sorted_flat_folder_has_no_truth(tmp_path: Path) -> None:
    for name, value in (("b.png", 2), ("a.PNG", 1), ("c.bmp", 3)):
        save(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("x")
    got = take(tmp_path)
    assert [(c.seq, c.truth, int(c.image[0, 0, 0])) for c in got] == [(0, None, 1), (1, None, 2), (2, None, 3)]
    assert got[0].image.shape == (3, 4, 3)
    assert got[0].image.dtype == np.uint8


def test_class_folders_give_truth_by_sorted_name(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "x" / "1.png", 30)
    save(tmp_path / "cat" / "2.png", 20)
    save(tmp_path / "cat" / "1.png", 10)
    (tmp_path / "ant").mkdir()  # no images inside: no class
    got = take(tmp_path)
    assert [(c.truth, int(c.image[0, 0, 0])) for c in got] == [(0, 10), (0, 20), (1, 30)]


def test_modes_become_grey_or_rgb(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 7, "L")
    save(tmp_path / "b.png", 7, "RGBA")
    assert [c.image.shape for c in take(tmp_path)] == [(3, 4), (3, 4, 3)]


def test_loop_runs_on(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    got = take(tmp_path, limit=5, loop=True)
    assert [(c.seq, int(c.image[0, 0, 0])) for c in got] == [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1)]


def test_errors_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        take(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images inside"):
        take(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        take(tmp_path)
