"""How a process comes by the compiled library: from the cache, from the background, or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tierline.kernels import affine, bitplane, build
from tierline.kernels.library import Buffer, Loader, UnknownChoice, address, library, pointer, readable
from tierline.kernels.numpy import affine as affine_oracle
from tierline.kernels.numpy import bitplane as bitplane_oracle

SOURCE = "#pragma once\n" + 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one entry that compiles at once, in a cache of its own; skips without a compiler."""
    try:
        build.compiler()
    except build.BuildError:
        pytest.skip("no C++ compiler")
    source = tmp_path / "src"
    source.mkdir()
    (source / "answer.h").write_text(SOURCE)
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def settled(loader: Loader) -> object:
    """What `auto` finds once the background has done its work."""
    ends = time.monotonic() + 60
    while loader.library() is None and not loader.is_settled:
        assert time.monotonic() < ends
        time.sleep(0.01)
    return loader.library()


def test_cpu_waits_for_the_build(small: Path) -> None:
    loaded = Loader("cpu").library()
    assert loaded is not None
    assert loaded.answer() == 42


def test_a_cached_library_needs_no_compiler(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build.library()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert build.cached() == made
    assert Loader("auto").library() is not None


def test_a_changed_source_is_not_served_from_the_cache(small: Path) -> None:
    build.library()
    (small / "src" / "answer.h").write_text(SOURCE.replace("42", "43"))
    assert build.cached() is None


def test_without_a_compiler_numpy_serves_with_one_warning(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    loader = Loader("auto")
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler"):
        assert loader.library() is None
    assert loader.library() is None  # a second warning would be an error
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        Loader("cpu").library()


def test_auto_builds_in_the_background_and_takes_the_library_when_it_is_there(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.kernels.library.build_command", lambda: _builder(small / "src"))
    loader = Loader("auto")
    assert loader.library() is None  # at once
    assert not loader.is_settled
    loaded = settled(loader)
    assert loaded is not None


def test_a_build_that_fails_in_the_background_leaves_numpy_with_its_reason(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small / "src" / "answer.h").write_text("this is no C++\n")
    monkeypatch.setattr("tierline.kernels.library.build_command", lambda: _builder(small / "src"))
    loader = Loader("auto")
    assert loader.library() is None
    with pytest.warns(RuntimeWarning, match="failed with status"):
        assert settled(loader) is None
    assert loader.is_settled


def test_a_second_thread_waits_for_the_same_build(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks before there is a builder, and has the lock once there is one: that ends no search."""
    ends = threading.Event()
    monkeypatch.setattr(Loader, "_build", lambda self: ends.wait(60))
    loader = Loader("auto")
    loader._settle(False)
    loader._settle(False)  # what a thread runs that was waiting for the lock
    assert not loader.is_settled
    made = build.library()
    ends.set()
    assert settled(loader) is not None
    assert build.cached() == made


def test_a_build_that_ends_between_two_looks_is_found(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loader, "_build", lambda self: None)
    loader = Loader("auto")
    assert loader.library() is None
    loader._builder.join(60)
    looks = iter([None, build.library()])
    monkeypatch.setattr(build, "cached", lambda: next(looks))
    assert loader.library() is not None


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_a_damaged_library_is_built_anew(small: Path, kept: float) -> None:
    """Loading one that was cut would end the process."""
    path = build.library()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else int(kept)])
    assert build.cached() is None
    loaded = Loader("cpu").library()
    assert loaded is not None and loaded.answer() == 42
    assert build.cached().read_bytes() == content


def test_a_library_of_another_system_is_built_anew(small: Path) -> None:
    good = build.library()
    bad = build.named(good, b"no library of this system")
    bad.write_bytes(b"no library of this system")
    good.unlink()
    assert build.cached() == bad
    loaded = Loader("cpu").library()
    assert loaded is not None and loaded.answer() == 42
    assert not bad.exists()


def test_a_library_that_never_loads_is_tried_twice(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cached", lambda: None)
    made = small / "never.so"
    made.write_bytes(b"no library")
    monkeypatch.setattr(build, "library", lambda: made)
    with pytest.raises(build.BuildError, match="does not load"):
        Loader("cpu").library()


def test_without_a_home_the_cache_folder_is_asked_for(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.delenv("TIERLINE_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert build.cached() is None
    with pytest.raises(build.BuildError, match="TIERLINE_CACHE_DIR"):
        Loader("cpu").library()


def test_a_compiler_of_several_words(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = build.compiler()
    monkeypatch.setenv("CXX", f"/usr/bin/env {words[0]}")
    assert build.compiler() == ("/usr/bin/env", words[0])
    assert build.library().is_file()


def test_a_compiler_that_writes_nothing_is_named(small: Path) -> None:
    with pytest.raises(build.BuildError, match="wrote nothing"):
        build.library("true")


def _builder(source: Path) -> list[str]:
    root = str(Path(build.__file__).parents[2])
    lines = (
        f"import sys, pathlib; sys.path.insert(0, {root!r}); from tierline.kernels import build",
        f"build.SOURCE = pathlib.Path({str(source)!r}); sys.exit(build.main())",
    )
    return [sys.executable, "-c", "\n".join(lines)]


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(UnknownChoice, match="TIERLINE_KERNELS='gpu'"):
        Loader("gpu")


def test_a_pointer_is_where_the_values_lie() -> None:
    x_B = np.arange(12.0, dtype=np.float32)
    for array in (x_B, x_B[3:], x_B.reshape(3, 4)):
        assert getattr(pointer(array), "value", pointer(array)) == address(array) == array.ctypes.data


def test_kernels_read_aligned_arrays_and_copy_no_others() -> None:
    good = np.arange(12.0, dtype=np.float32)
    assert readable(good) is good
    odd = np.empty(good.nbytes + 1, np.uint8)[1:].view(np.float32)
    odd[...] = good
    assert readable(odd).flags.carray and readable(odd).tolist() == good.tolist()
    assert readable(good[::2]).flags.carray


@pytest.mark.parametrize("num_bytes", [1, 8192, 8193])
def test_a_buffer_is_its_own(num_bytes: int) -> None:
    one, other = Buffer(num_bytes), Buffer(num_bytes)
    assert len(one.data) == num_bytes
    assert one.address != other.address


@pytest.mark.slow
def test_the_baseline_without_clones_writes_the_same_bytes(tmp_path: Path) -> None:
    """What a processor without AVX, or of another family, runs."""
    if library(wait=True) is None:
        pytest.skip("no C++ compiler")
    plain = build.library(flags=(*build.FLAGS, "-DTL_NO_CLONES"))
    script = tmp_path / "encode.py"
    script.write_text(_ENCODE)
    root = str(Path(build.__file__).parents[2])
    done = subprocess.run([sys.executable, str(script), root, str(plain)], capture_output=True, check=True, timeout=120)
    assert done.stdout == _encode(affine, bitplane) == _encode(affine_oracle, bitplane_oracle)


def _encode(affine: object, bitplane: object) -> bytes:
    names = {"affine": affine, "bitplane": bitplane}
    exec(_CASES, names)
    return names["coded"]  # type: ignore[return-value]


_CASES = """
import numpy as np
x_BV = np.random.default_rng(3).normal(size=(3, 1001)).astype(np.float32)
coded = bitplane.encode(x_BV)
for bits in range(1, 9):
    for clip in ("minmax", "percentile", "mse"):
        coded += affine.encode(x_BV, bits, clip, 20, bits % 3, 7)
"""
_ENCODE = (
    """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from tierline.kernels import affine, bitplane, library
loader = library.Loader("numpy")
loader._loaded = ctypes.CDLL(sys.argv[2])
library._loaders.append(loader)
"""
    + _CASES
    + "sys.stdout.buffer.write(coded)\n"
)
