"""NVRTC through ctypes: CUDA source in memory to a cubin in memory, without a host compiler."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
from pathlib import Path
from typing import Any

from tierline.kernels.build import BuildError


def load() -> Nvrtc | None:
    """The newest NVRTC found, or None."""
    for path in _candidates():
        try:
            # NVRTC opens its other half by bare name, which finds nothing outside the linker's folders unless loaded.
            for other in Path(path).parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(other))
            return Nvrtc(ctypes.CDLL(path))
        except (OSError, AttributeError):  # not there, or too old to make cubins
            continue
    return None


class Nvrtc:
    """A loaded library. `version` is such as `13.0`."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self._lib = lib
        lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        lib.nvrtcGetCUBINSize  # noqa: B018  CUDA 11.1 and later

    def compile(self, unit: str, headers: dict[str, str], arch: str, flags: tuple[str, ...]) -> tuple[bytes, str]:
        """Cubin and log, with the assembler's report of registers. Raises BuildError with the log."""
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), unit.encode(), b"kernels.cu", len(headers), texts, names
        )
        try:
            options = [*flags, f"--gpu-architecture={arch}", "--ptxas-options=-v"]
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            try:
                self._call("nvrtcCompileProgram", program, len(options), array)
            except BuildError as error:
                raise BuildError(f"{error} for {arch}: {self._text('nvrtcGetProgramLog', program)}") from None
            return self._bytes("nvrtcGetCUBIN", program), self._text("nvrtcGetProgramLog", program)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, name: str, program: ctypes.c_void_p) -> str:
        return self._bytes(name, program).rstrip(b"\0").decode(errors="replace").strip()

    def _bytes(self, name: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(name, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._lib[name](*arguments)
        if status:
            raise BuildError(f"NVRTC: {name}: {self._lib.nvrtcGetErrorString(status).decode()}")


def _candidates() -> list[str]:
    """Library files to try: the pip package's, a toolkit's, the linker's."""
    folders: list[Path] = []
    spec = importlib.util.find_spec("nvidia")
    for site in (spec.submodule_search_locations or []) if spec else []:
        folders += [*sorted(Path(site).glob("cu*/lib"), reverse=True), Path(site) / "cuda_nvrtc" / "lib"]
    folders += [Path(home) / "lib64" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    files = [str(f) for folder in folders for f in sorted(folder.glob("libnvrtc.so.*"), reverse=True)]
    return [*files, *(f for f in [ctypes.util.find_library("nvrtc")] if f)]
