"""One library per architecture, the same bytes on every processor: aarch64, and x86-64 without any extension.

Emulated by qemu's user mode: it shows what a library computes and which instructions it needs, and nothing of speed.
`make cross-tools` installs compiler and emulators.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from replay import SOURCE, Recorder

from tierline.kernels import affine, bitplane, build, float16, half
from tierline.kernels.library import library
from tierline.kernels.numpy import affine as affine_oracle
from tierline.kernels.numpy import bitplane as bitplane_oracle
from tierline.kernels.numpy import float16 as float16_oracle

CROSS = "aarch64-linux-gnu-g++"
SYSROOT = "/usr/aarch64-linux-gnu"
QEMU_ARM, QEMU_X86 = "qemu-aarch64-static", "qemu-x86_64-static"
NUM_CALLS = 2 + 5 * (8 * 2 + 3) + 3
EQUAL = f"{NUM_CALLS} calls, equal bytes\n"
RNG = np.random.default_rng(11)


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: make cross-tools installs it")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of what every kernel was called with and left behind, where that equals the oracle's bytes."""
    if library(wait=True) is None:
        pytest.skip("no C++ compiler")
    recorder = Recorder()
    for kernel in (affine, bitplane, half, float16.half):
        recorder.install(kernel, monkeypatch)
    x_BV = RNG.integers(0, 1 << 32, (3, 1001), np.uint32).view(np.float32)  # of every exponent, some of them NaN
    data = float16.encode(x_BV)
    assert data == float16_oracle.encode(x_BV)
    float16.decode(data, np.empty_like(x_BV))
    for shape in [(1, 1), (3, 7), (2, 64), (2, 1001), (1, 20000)]:
        x_BV = (RNG.normal(size=shape) * 10.0 ** RNG.integers(-30, 30, (shape[0], 1))).astype(np.float32)
        x_BV[:, 0] = 0.0
        for bits in range(1, 9):
            data = affine.encode(x_BV, bits)
            assert data == affine_oracle.encode(x_BV, bits)
            affine.decode(data, np.empty_like(x_BV), bits, fresh=bits % 2 == 0)
        data = bitplane.encode(x_BV)
        assert data == bitplane_oracle.encode(x_BV)
        bitplane.decode(data, np.empty_like(x_BV))
        with pytest.raises(ValueError, match="NaN"):
            bitplane.encode(np.full_like(x_BV, np.nan))
    x_BV = RNG.gamma(0.3, size=(3, 5000)).astype(np.float32)
    for arguments in [("percentile", 7), ("mse", 0), ("minmax", 0, 2, 99)]:
        assert affine.encode(x_BV, 5, *arguments) == affine_oracle.encode(x_BV, 5, *arguments)
    monkeypatch.undo()
    assert recorder.num_calls == NUM_CALLS
    recorder.write(tmp_path / "calls")
    return tmp_path / "calls"


def replayer(folder: Path, cxx: Sequence[str]) -> Path:
    made = folder / "replay"
    subprocess.run([*cxx, "-O1", str(SOURCE), "-o", str(made), "-ldl"], check=True, timeout=120)
    return made


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)


def test_aarch64_computes_the_same_bytes(calls: Path, tmp_path: Path) -> None:
    need(CROSS, QEMU_ARM)
    made = build.library(CROSS)
    assert made.name.startswith("aarch64-")
    done = run(QEMU_ARM, "-L", SYSROOT, replayer(tmp_path, [CROSS]), made, calls)
    assert (done.returncode, done.stdout, done.stderr) == (0, EQUAL, "")


@pytest.mark.parametrize("processor", ["qemu64", "Haswell"])
def test_one_x86_library_serves_old_and_new_processors(calls: Path, tmp_path: Path, processor: str) -> None:
    """qemu64 has SSE2 and little more and gets the baseline clone; Haswell has AVX2 and gets the one for it."""
    if platform.machine() != "x86_64":
        pytest.skip("about x86-64")
    need(QEMU_X86)
    done = run(QEMU_X86, "-cpu", processor, replayer(tmp_path, build.compiler()), build.library(), calls)
    assert (done.returncode, done.stdout) == (0, EQUAL)


def test_the_old_processor_would_refuse_newer_instructions(calls: Path, tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    if platform.machine() != "x86_64":
        pytest.skip("about x86-64")
    need(QEMU_X86)
    made = build.library(flags=("-std=c++17", "-O1", "-march=x86-64-v3", "-DTL_NO_CLONES"))
    done = run(QEMU_X86, "-cpu", "qemu64", replayer(tmp_path, build.compiler()), made, calls)
    assert done.returncode in (-4, 132), done  # SIGILL


def test_a_wrong_byte_is_seen(calls: Path, tmp_path: Path) -> None:
    data = bytearray(calls.read_bytes())
    data[-74] ^= 1  # before seven scalars and the answer: the last byte that the last call must leave behind
    calls.write_bytes(bytes(data))
    done = run(replayer(tmp_path, build.compiler()), build.library(), calls)
    assert done.returncode == 1
    assert f"call {NUM_CALLS - 1}, tl_affine_encode_cpu: byte 9398 of pointer 1 is " in done.stdout
