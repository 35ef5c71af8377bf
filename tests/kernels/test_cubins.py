"""Every header compiles for every GPU architecture that the toolchain knows, within registers, without spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tierline.kernels import build, cubin
from tierline.kernels.cubin import FLAGS, TARGETS, Toolchain

MAX_REGISTERS = 64
"""Per thread: 65,536 registers of a multiprocessor then hold 1,024 threads, which keeps its memory busy."""
CHAINS = {"nvrtc": cubin.nvrtc, "nvcc": cubin.nvcc}
_ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for '\w+'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


class Resources(NamedTuple):
    """What one entry takes, per thread, by the assembler's own report."""

    registers: int
    stack_bytes: int
    spill_bytes: int


def resources(log: str) -> dict[str, Resources]:
    """Of every entry that an assembler's verbose log names."""
    found = {}
    for name, stack, stores, loads, registers in _ENTRY.findall(log):
        found[name] = Resources(int(registers), int(stack), int(stores) + int(loads))
    return found


@pytest.fixture(params=sorted(CHAINS))
def chain(request: pytest.FixtureRequest) -> Toolchain:
    found = CHAINS[request.param]()
    if found is None:
        pytest.skip(f"no {request.param} here")
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path))
    return tmp_path / "kernels"


def headers() -> dict[str, str]:
    return {path.name: path.read_text() for path in build.SOURCE.glob("*.h")}


@pytest.mark.parametrize("arch", TARGETS)
def test_every_target_within_registers_and_without_spills(arch: str) -> None:
    """All headers at once, as it is shipped: an entry is one of its own, so its registers are its own too."""
    chain = next(iter(cubin.toolchains()), None)
    if chain is None:
        pytest.skip("neither NVRTC nor nvcc here")
    try:
        image, log = chain.compile(build.translation_unit(), headers(), arch, FLAGS)
    except build.BuildError as error:
        if cubin.refuses(str(error)):
            pytest.skip(f"{chain.name} {chain.version} does not know {arch}")
        raise
    assert image[:4] == b"\x7fELF"
    assert "warning" not in log.lower(), log
    found = resources(log)
    entries = {name for text in headers().values() for name in re.findall(r"TL_ENTRY\((tl_\w+)\)", text)}
    assert found.keys() == entries, log
    over = {n: r for n, r in found.items() if r.registers > MAX_REGISTERS or r.spill_bytes or r.stack_bytes}
    assert over == {}


@pytest.mark.parametrize("name", sorted(name for name, text in headers().items() if "TL_ENTRY(tl_" in text))
def test_every_header_compiles_alone(chain: Toolchain, name: str) -> None:
    image, _ = chain.compile(f'#include "{name}"\n', headers(), "sm_87", FLAGS)
    assert image[:4] == b"\x7fELF"


def test_no_function_is_the_hosts_alone() -> None:
    """NVRTC refuses such functions, nvcc does not: every one says where it runs, or is left out for a GPU."""
    try:
        cxx = build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    command = [*cxx, "-E", "-P", "-x", "c++", "-D__CUDACC__", "-I", str(build.SOURCE), "-"]
    unit = build.translation_unit()
    done = subprocess.run(command, input=unit, capture_output=True, text=True, timeout=60, check=True)
    heads = [line for line in done.stdout.splitlines() if re.match(r"[a-z_].*\(", line)]
    assert len(heads) > 10
    assert [line for line in heads if not re.match(r'(template <[^>]*> )?__device__|extern "C" __global__', line)] == []


def test_no_multiply_is_contracted_with_an_add() -> None:
    """In the intermediate code, where a division is still one instruction and not the additions it becomes."""
    chain = cubin.nvcc()
    if chain is None:
        pytest.skip("no nvcc here")
    with tempfile.TemporaryDirectory() as folder:
        unit, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.ptx"
        unit.write_text(build.translation_unit())
        command = ["nvcc", "-ptx", "-arch=sm_87", "-I", str(build.SOURCE), str(unit), "-o", str(made)]
        subprocess.run([*command, *FLAGS], check=True, timeout=120, capture_output=True)
        strict = made.read_text()
        subprocess.run([*command, "--fmad=true"], check=True, timeout=120, capture_output=True)
        contracted = made.read_text()
    assert "fma.rn.f32" in contracted  # or this test would see nothing
    assert "fma." not in strict
    assert "div.rn.f32" in strict
    assert ".ftz" not in strict


def test_a_cubin_is_made_once(cache: Path, chain: Toolchain) -> None:
    path = cubin.cubin("sm_87", chain)
    assert path.parent == cache
    assert path.name.startswith("sm_87-")
    assert resources(path.with_suffix(".log").read_text())
    stamp = path.stat().st_mtime_ns
    assert cubin.cubin("sm_87", chain) == path
    assert path.stat().st_mtime_ns == stamp


def fake(answer: str | bytes, version: str = "1") -> Toolchain:
    def compile_(unit: str, texts: dict[str, str], arch: str, flags: tuple[str, ...]) -> tuple[bytes, str]:
        if isinstance(answer, str):
            raise build.BuildError(answer)
        return answer, ""

    return Toolchain("fake", version, compile_)


def test_other_versions_make_other_files(cache: Path) -> None:
    first, second = cubin.cubin("sm_87", fake(b"a", "1")), cubin.cubin("sm_87", fake(b"b", "2"))
    assert first != second
    assert cubin.cubin("sm_90", fake(b"c")).read_bytes() == b"c"


def test_without_a_toolchain_a_copied_cubin_serves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin, "toolchains", lambda: ())
    with pytest.raises(build.BuildError, match=r"no cubin for sm_87 .* copy a cubin"):
        cubin.cubin("sm_87")
    with pytest.raises(build.BuildError, match="neither NVRTC nor nvcc"):
        cubin.build()
    made = cubin.cubin("sm_87", fake(b"from elsewhere"))
    assert cubin.cubin("sm_87") == made


@pytest.mark.parametrize("damage", [b"", b"\x7fEL", b"garbage of another length"])
def test_a_damaged_cubin_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    path = cubin.cubin("sm_87", fake(b"\x7fELF, and more"))
    path.write_bytes(damage)
    monkeypatch.setattr(cubin, "toolchains", lambda: ())
    with pytest.raises(build.BuildError, match="no cubin for sm_87"):
        cubin.cubin("sm_87")
    damaged = path.rename(path.with_name(path.name.replace(".cubin", "0.cubin")))
    assert cubin.cubin("sm_87", fake(b"\x7fELF, and more")).read_bytes() == b"\x7fELF, and more"
    assert not damaged.exists()


@pytest.mark.parametrize(
    "words",
    [
        "nvcc fatal   : Unsupported gpu architecture 'sm_72'",
        "nvrtc: error: invalid value for --gpu-architecture (-arch)",
    ],
)
def test_a_target_that_the_toolchain_refuses_is_named(cache: Path, words: str) -> None:
    assert cubin.build(["sm_72"], fake(words)) == {"sm_72": words}


def test_bad_source_is_an_error_and_no_refusal(cache: Path, chain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin, "translation_unit", lambda: "this is no C++\n")
    with pytest.raises(build.BuildError, match=r"(?s)error"):
        cubin.build(["sm_87"], chain)


def test_an_unwritable_cache_says_what_to_do(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(build.BuildError, match="TIERLINE_CACHE_DIR"):
        cubin.cubin("sm_87", fake(b"x"))
