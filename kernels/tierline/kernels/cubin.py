"""Compiles `src/` into one cubin per GPU architecture, with NVRTC or nvcc, whichever is there; into the same cache.

No contracted multiply-adds, IEEE division and square root, denormals kept: the bytes must equal the CPU's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tierline.kernels import _nvrtc
from tierline.kernels.build import (
    SOURCE,
    BuildError,
    _run,
    cache_dir,
    discard,
    named,
    store,
    translation_unit,
    whole,
)

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
"""What a build ahead of time makes: desktop and datacentre GPUs, Jetson Orin (87) and Thor (110)."""
FLAGS = ("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")


class Toolchain(NamedTuple):
    """A compiler of cubins: `compile(unit, headers, arch, flags)` gives image and log, or raises BuildError."""

    name: str
    version: str
    compile: Callable[[str, dict[str, str], str, tuple[str, ...]], tuple[bytes, str]]


def toolchains() -> tuple[Toolchain, ...]:
    """NVRTC first, since it needs no host compiler; empty where neither is there."""
    return tuple(found for found in (nvrtc(), nvcc()) if found)


@cache
def nvrtc() -> Toolchain | None:
    """NVRTC of the package `nvidia-cuda-nvrtc`, of a CUDA toolkit, or of JetPack."""
    loaded = _nvrtc.load()
    return Toolchain("nvrtc", loaded.version, loaded.compile) if loaded else None


@cache
def nvcc() -> Toolchain | None:
    """`nvcc` on PATH, in `CUDA_HOME`, or where JetPack and the toolkit install it."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    path = shutil.which("nvcc") or next((f for h in homes if h and (f := shutil.which(f"{h}/bin/nvcc"))), None)
    if path is None:
        return None
    version = _run([path, "--version"]).strip().splitlines()[-1]

    def compile_(unit: str, headers: dict[str, str], arch: str, flags: tuple[str, ...]) -> tuple[bytes, str]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for header, text in headers.items():
                (folder / header).write_text(text)
            (folder / "kernels.cu").write_text(unit)
            made = folder / "kernels.cubin"
            command = [path, "-cubin", f"-arch={arch}", *flags, "-Xptxas", "-v", str(folder / "kernels.cu")]
            log = _run([*command, "-o", str(made)], with_errors=True)
            return made.read_bytes(), log

    return Toolchain("nvcc", version, compile_)


def cubin(arch: str, toolchain: Toolchain | None = None) -> Path:
    """Path of the cubin for `arch` such as `sm_87`, compiled now unless the cache holds it. Raises BuildError.

    Without a toolchain a cubin of the same source that another one made is taken, for instance one copied to a device.
    """
    sources = {path.name: path.read_text() for path in sorted(SOURCE.glob("*.h"))}
    start = f"{arch}-{_digest([*FLAGS, *sources, *sources.values()])}"
    folder = cache_dir() / "kernels"
    chain = toolchain or next(iter(toolchains()), None)
    if chain is None:
        if made := whole(folder, start, ".cubin"):
            return made
        raise BuildError(
            f"no cubin for {arch} in {folder}, and neither NVRTC nor nvcc to make one: install the CUDA toolkit or "
            "the package nvidia-cuda-nvrtc, or copy a cubin from a machine that has one"
        )
    start += f"-{_digest([chain.name, chain.version])}"
    if made := whole(folder, start, ".cubin"):
        return made
    image, log = chain.compile(translation_unit(), sources, arch, FLAGS)
    path = named(folder / f"{start}-.cubin", image)
    discard(folder, start, ".cubin")
    store(path.with_suffix(".log"), log.encode())
    store(path, image)
    return path


def build(
    targets: Iterable[str] = TARGETS,
    toolchain: Toolchain | None = None,
    told: Callable[[str, Path | str], object] = lambda arch, found: None,
) -> dict[str, Path | str]:
    """Each target's cubin, or in the compiler's words why it has none; `told` hears of each as it ends.

    Raises BuildError where nothing compiles.
    """
    if toolchain is None and not toolchains():
        raise BuildError("neither NVRTC nor nvcc is there to make cubins")
    built: dict[str, Path | str] = {}
    for arch in targets:
        try:
            built[arch] = cubin(arch, toolchain)
        except BuildError as error:
            if not refuses(str(error)):
                raise
            built[arch] = str(error)
        told(arch, built[arch])
    return built


def refuses(message: str) -> bool:
    """Whether a compiler's message says that it does not know the architecture, rather than that the source is bad."""
    return bool(re.search(r"(unsupported|invalid value for|not defined for|is not supported).*arch", message, re.I))


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
