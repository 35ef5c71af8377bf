"""A mock CUDA driver for tests: the GPU side of the kernel headers, run on the CPU. It proves nothing about speed."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

from tierline.kernels import build

FOLDER = Path(__file__).parent
_ENTRY = re.compile(r"TL_ENTRY\((tl_\w+)\)")
_TABLE = """
struct Entry {{ const char *name; std::function<std::function<int()>(void **)> bind; }};
template <class... A, size_t... I>
std::function<int()> bind_entry(void (*entry)(A...), void **arguments, std::index_sequence<I...>) {{
    std::tuple<A...> values{{*(A *)arguments[I]...}};
    return [=] {{ return std::apply(entry, values), 0; }};
}}
template <class... A> Entry entry_of(const char *name, void (*entry)(A...)) {{
    return {{name, [=](void **a) {{ return bind_entry(entry, a, std::index_sequence_for<A...>{{}}); }}}};
}}
static const Entry entry_table[] = {{{rows}}};
"""


def compile_driver(folder: Path) -> Path:
    """The mock as a shared library in `folder`. Raises BuildError where no compiler is there or it refuses."""
    names = [name for path in sorted(build.SOURCE.glob("*.h")) for name in _ENTRY.findall(path.read_text())]
    rows = ", ".join(f'entry_of("{name}", {name})' for name in names)
    unit = folder / "mock.cpp"
    unit.write_text(
        '#include <tuple>\n#include <utility>\n#include "builtins.h"\n'
        f'{build.translation_unit()}{_TABLE.format(rows=rows)}#include "driver.h"\n'
    )
    made = folder / "mock-libcuda.so"
    # Vector accesses of the kernels must be aligned as a GPU demands: a wrong one traps.
    checks = ["-fsanitize=alignment,shift,bounds", "-fsanitize-undefined-trap-on-error", "-fno-strict-aliasing"]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", *checks]
    command = [*build.compiler(), *flags, "-I", str(FOLDER), "-I", str(build.SOURCE), str(unit), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise build.BuildError(done.stderr[:4000])
    return made


def have_compiler() -> bool:
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def configure(path: Path, *, num_devices: int = 1, integrated: bool = False) -> None:
    """What the mock's devices are from now on, in this process."""
    ctypes.CDLL(str(path)).mock_configure(num_devices, int(integrated))


def num_allocations(path: Path) -> int:
    count: int = ctypes.CDLL(str(path)).mock_num_allocations()
    return count
