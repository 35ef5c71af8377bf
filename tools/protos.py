"""Generates the gRPC stubs of every `protos/tierline/v1/*.proto`; `--check` compares them with what is committed.

Four outputs stand beside each proto: `x_pb2.py` and, where it has a service, `x_pb2_grpc.py` from the oldest supported
protobuf toolchain (generated code refuses a runtime older than itself), `x_pb2.pyi` and `x_pb2_grpc.pyi` from
mypy-protobuf. A type stub is no runtime code, so its generator may be new; it comes from this interpreter's
environment.

With these stubs and types-grpcio, strict mypy needs no casts: `InferenceStub(channel)` is an `InferenceAsyncStub` when
the channel is a `grpc.aio.Channel`; a servicer overrides the generated one with plain `async def` methods. A stream is
best read by `async for`; after `await call.read()` narrow with `isinstance(frame, inference_pb2.Frame)`, because
comparing with `grpc.aio.EOF` narrows nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "protos"
PACKAGE = "tierline/v1"
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(protoc_python: str, out: Path) -> None:
    """Writes all stubs below `out`. Raises CalledProcessError when protoc refuses a file; it has then said why."""
    protos = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / PACKAGE).glob("*.proto"))
    services = [p for p in protos if re.search(r"^service ", (ROOT / p).read_text("utf-8"), re.MULTILINE)]
    plugins = Path(sys.executable).parent
    protoc = [protoc_python, "-m", "grpc_tools.protoc", f"-I{ROOT}"]
    messages = [f"--plugin={plugins / 'protoc-gen-mypy'}", f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    grpc = [
        f"--plugin={plugins / 'protoc-gen-mypy_grpc'}",
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    if protos:
        subprocess.run([*protoc, *messages, *protos], check=True)
    if services:
        subprocess.run([*protoc, *grpc, *services], check=True)


def stubs(root: Path) -> dict[str, bytes]:
    """Content of every generated file of the package below `root`, by file name."""
    return {p.name: p.read_bytes() for pattern in PATTERNS for p in (root / PACKAGE).glob(pattern)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate or check the gRPC stubs.")
    parser.add_argument("--protoc-python", required=True, help="interpreter that has grpcio-tools")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed stub differs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(arguments.protoc_python, Path(folder))
        new, old = stubs(Path(folder)), stubs(ROOT)
    stale = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    if arguments.check:
        for name in stale:
            print(f"protos/{PACKAGE}/{name}: differs from what its proto generates; run make protos", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        target = ROOT / PACKAGE / name
        if name in new:
            target.write_bytes(new[name])
        else:
            target.unlink()
        print(f"{'wrote' if name in new else 'removed'} protos/{PACKAGE}/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
