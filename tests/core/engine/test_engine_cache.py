"""Kept engines: whole, one's own and exactly those asked for, or built again."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tierline.core.engine import _trt_keep
from tierline.core.engine._cache import EngineCache, Key
from tierline.core.engine._trt_build import Built, Wish
from tierline.core.engine._trt_keep import key_of, obtain
from tierline.core.errors import EngineError
from tierline.kernels.cuda import Device

KEY = Key(hashlib.sha256(b"model").hexdigest(), "tensorrt", "10.3.0", "sm_87", "Orin", "aarch64", "R36.4.3", 64, 1, 0)
PLAN = bytes(range(256)) * 10


class Trt:
    __name__ = "tensorrt_rtx"
    __version__ = "1.7"


@pytest.fixture
def kept() -> tuple[EngineCache, Path]:
    cache = EngineCache()
    return cache, cache.store(KEY, PLAN, section="device:left", precision="fp16+fp32")


def test_what_was_stored_is_loaded_and_listed(kept: tuple[EngineCache, Path]) -> None:
    cache, path = kept
    assert EngineCache().load(KEY) == PLAN
    (entry,) = cache.entries()
    assert (entry.path, entry.problem) == (path, "")
    assert entry.head is not None
    assert (entry.head.key, entry.head.section, entry.head.precision) == (KEY, "device:left", "fp16+fp32")
    assert [file.name for file in cache.folder.iterdir()] == [path.name]  # nothing half is left
    cache.remove(path)
    assert cache.load(KEY) is None


@pytest.mark.parametrize("field", Key.__struct_fields__)
def test_every_part_of_the_key_counts(kept: tuple[EngineCache, Path], field: str) -> None:
    cache, path = kept
    value = getattr(KEY, field)
    other = msgspec.structs.replace(KEY, **{field: value + 1 if isinstance(value, int) else value + "x"})
    assert cache.load(other) is None
    path.rename(cache.path(other))  # a file under another's name
    assert cache.load(other) is None


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: flip(path, -1), "content is not what its head says"),
        (lambda path: flip(path, 0), "no engine file"),
        (lambda path: flip(path, 30), "head"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "content is not"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "content is not"),
        (lambda path: path.write_bytes(b""), "no engine file"),
        (lambda path: path.write_bytes(PLAN), "no engine file"),
        (lambda path: path.chmod(0o666), "every user may write"),
    ],
    ids=["content", "magic", "head", "cut", "longer", "empty", "foreign", "open to all"],
)
def test_damaged_and_foreign_files_are_never_used(
    kept: tuple[EngineCache, Path], caplog: pytest.LogCaptureFixture, damage: Any, words: str
) -> None:
    cache, path = kept
    damage(path)
    with caplog.at_level(logging.WARNING, "tierline.engine"):
        assert cache.load(KEY) is None
    assert words in caplog.text
    (entry,) = cache.entries()
    assert words in entry.problem


def test_a_file_of_another_user_is_foreign(kept: tuple[EngineCache, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, path = kept
    if os.geteuid() != 0:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        os.chown(path, 12345, -1)
    assert cache.load(KEY) is None


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Models built so far."""
    made: list[bytes] = []

    def build(trt: Any, model: bytes, name: str, wish: Wish, **options: Any) -> Built:
        made.append(options["timing"])
        return Built(b"engine of " + model, "fp32", b"timings")

    monkeypatch.setattr(_trt_keep, "build", build)
    return made


def test_an_engine_is_built_once_and_again_where_it_is_damaged(builds: list[bytes]) -> None:
    cache, wish = EngineCache(), Wish(arch="sm_86")

    def get(**options: Any) -> Any:
        return obtain(Trt(), b"model", "section", wish, None, cache, **options)

    first, second = get(), get()
    assert (first.is_new, second.is_new) == (True, False)
    assert first.plan == second.plan == b"engine of model"
    flip(first.path, -1)
    assert get().is_new
    assert get(again=True).is_new
    assert builds == [b"", b"timings", b"timings"]  # what was timed goes into the next build


def test_an_engine_built_ahead_for_the_architecture_is_used(builds: list[bytes], gpu: Device) -> None:
    cache = EngineCache()
    ahead = obtain(Trt(), b"model", "section", Wish(arch=gpu.arch), None, cache)
    found = obtain(Trt(), b"model", "section", Wish(), gpu, cache)
    assert (found.is_new, found.path) == (False, ahead.path)
    assert obtain(Trt(), b"other", "section", Wish(), gpu, cache).is_new


def test_the_folder_is_tried_before_anything_is_built(builds: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EngineCache(tmp_path / "file" / "engines")
    with pytest.raises(EngineError, match=r"engines cannot be kept here .*TIERLINE_CACHE_DIR"):
        obtain(Trt(), b"model", "section", Wish(arch="sm_86"), None, cache)
    assert builds == []


def test_a_read_only_folder_is_refused(builds: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> Any:
        raise PermissionError(13, "Permission denied")  # what a user who is not root meets

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(EngineError, match=r"engines cannot be kept here \(Permission denied\)"):
        obtain(Trt(), b"model", "section", Wish(arch="sm_86"), None, EngineCache())


def test_the_key_holds_jetsons_release(tmp_path: Path) -> None:
    tegra = tmp_path / "nv_tegra_release"
    tegra.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert key_of(Trt(), b"model", Wish(), None, tegra).jetpack == "R36.4.3"
    assert key_of(Trt(), b"model", Wish(), None, tmp_path / "none").jetpack == ""
