"""Hostile bytes for every decoder: whatever arrives, an array of the agreed shape or CorruptPayload, and no large
claim.

    python benchmarks/fuzz_codecs.py [--inputs 1000000] [--only affine:4] [--seed 0] [--sanitize]
    python benchmarks/fuzz_codecs.py --engine atheris [--inputs 1000000]

Every codec of the catalogue takes part by itself, alone and as a stage around or over `affine:4`, with the payloads
that it writes for a few batches as the corpus. `mutants` damages those (bit flips, edits of headers, truncation,
splices) and now and then states another shape or other parameters; `atheris`, where that package is installed, grows
a corpus by what it covers of the Python code. `--sanitize` compiles the kernels with the address and
undefined-behaviour sanitizers.

An allocation beyond the limit shows twice: the address space is bounded to ROOM_BYTES over what it was at the start,
and every TRACED-th input runs under tracemalloc. Prints JSON lines: an environment stamp, then per codec how many
inputs were refused and how many decoded. The first input that does anything else is printed in hexadecimal, with exit
code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from codec_mutants import mutant, plain_token

from tierline.core import catalog
from tierline.core.coding import codec_for
from tierline.core.errors import CorruptPayload, ShapeMismatch, UnknownCodec
from tierline.core.protocols import Codec
from tierline.core.telemetry.environment import environment
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import build

ROOM_BYTES = 1 << 29
ADMITTED_BYTES = 1 << 18
"""Above what decoding any of the batches below may take: at most 3 rows of 4 KiB, with copies and temporaries."""
TRACED = 50
MAX_ROWS = 3
INNER = "affine:4"
SHAPES = ((), (0,), (5,), (3, 7), (4, 16, 16), (3, 17, 9), (1, 8, 8))
PARAMS: tuple[dict[str, float], ...] = ({}, {"seed": float("nan")}, {"seed": -1.0, "lo": float("inf"), "scale": 1e300})
SANITIZE = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-DTL_NO_CLONES", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Target:
    """A decoder, what it was promised, and payloads that it should take."""

    token: str
    limit: TensorSpec
    corpus: tuple[bytes, ...]
    params: dict[str, float]


def tokens() -> list[str]:
    """Every codec alone, and every one that wraps others over `affine:4` and over all others that do."""
    names = catalog.names("codec")
    made = {plain_token(name) for name in names}
    wrapping = [name for name in names if codec_for(plain_token(name)).role != "values"]
    for name in wrapping:
        for before in ("", *(f"{other}+" for other in wrapping)):
            for token in (f"{before}{name}+{INNER}", f"{before}{INNER}+{name}"):
                with contextlib.suppress(UnknownCodec):  # not every order makes sense
                    made.add(codec_for(token).token)
    made |= {"affine:1", "affine:3", "bitplane+cabac"}
    return sorted(made)


def targets(token: str) -> list[Target]:
    codec, found = codec_for(token), []
    for dtype in codec.dtypes:
        for shape in SHAPES:
            rng = np.random.default_rng(1)
            batches = [values(rng, codec, dtype, (num_rows, *shape)) for num_rows in (0, 1, 3)]
            try:
                payloads = [codec.encode(x_B) for x_B in batches]
            except ShapeMismatch:
                continue
            found.append(
                Target(token, TensorSpec(dtype, shape), tuple(p.data for p in payloads), dict(payloads[-1].params))
            )
    return found


def values(rng: np.random.Generator, codec: Codec, dtype: str, shape: tuple[int, ...]) -> Array:
    """Half zeros, as after a ReLU; integers that the codec has a symbol for."""
    alphabet: range | None = getattr(codec, "alphabet", None)
    if alphabet is not None:
        return rng.integers(alphabet.start, alphabet.stop, shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        return np.maximum(rng.normal(size=shape), 0).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


def attempt(target: Target, payload: Payload, *, traced: bool) -> bool:
    """Whether it decoded; False where it was refused as it should be. Raises AssertionError for anything else."""
    if traced:
        tracemalloc.start()
    try:
        decoded = codec_for(target.token).decode(payload, target.limit, max_rows=MAX_ROWS)
        assert decoded.shape == payload.shape, "another shape"
        assert decoded.dtype == np.dtype(target.limit.dtype), "another dtype"
    except CorruptPayload:
        return False
    finally:
        if traced:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak_bytes < ADMITTED_BYTES, f"{peak_bytes} bytes were allocated"
    return True


def damaged(target: Target, rng: Random) -> Payload:
    num_rows = (0, 1, 3)[int(rng.random() * 3)]
    data, params = mutant(target.corpus, rng), target.params
    if rng.random() < 0.05:
        num_rows = rng.choice((-1, 2, MAX_ROWS + 1, 1 << 40))
    if rng.random() < 0.05:
        params = rng.choice(PARAMS)
    return Payload(target.token, target.limit.dtype, (num_rows, *target.limit.shape), data, params)


def run_mutants(token: str, num_inputs: int, seed: int) -> dict[str, object]:
    found, rng = targets(token), Random(f"{token}/{seed}")
    num_decoded, started = 0, time.perf_counter()
    for at in range(num_inputs):
        target = found[at % len(found)]
        payload = damaged(target, rng)
        try:
            num_decoded += attempt(target, payload, traced=at % TRACED == 0)
        except BaseException:
            print(f"{target.token} {target.limit}: {payload}\ndata {payload.data.hex()}", file=sys.stderr)
            raise
    return {
        "codec": token,
        "inputs": num_inputs,
        "refused": num_inputs - num_decoded,
        "decoded": num_decoded,
        "seconds": round(time.perf_counter() - started, 1),
    }


def run_atheris(token: str, num_inputs: int, seed: int) -> None:
    """Ends the process, as that library does."""
    import atheris

    with atheris.instrument_imports(include=["tierline.core.codec", "tierline.kernels"]):
        codec_for(token)  # imports the files of its stages
    found = targets(token)
    counts = [0, 0]

    def once(data: bytes) -> None:
        target = found[data[0] % len(found)] if data else found[0]
        num_rows = (0, 1, 3)[data[0] // 64 % 3] if data else 0
        shape = (num_rows, *target.limit.shape)
        payload = Payload(token, target.limit.dtype, shape, data[1:], target.params)
        counts[attempt(target, payload, traced=sum(counts) % TRACED == 0)] += 1

    with tempfile.TemporaryDirectory() as folder:
        for at, target in enumerate(found):
            for row, data in enumerate(target.corpus):
                (Path(folder) / f"{at}-{row}").write_bytes(bytes([at + 64 * row]) + data)
        arguments = [f"-runs={num_inputs}", f"-seed={seed + 1}", "-verbosity=0", "-rss_limit_mb=2048", folder]
        atheris.Setup([sys.argv[0], *arguments], once)
        atheris.Fuzz()


def sanitized() -> None:
    """Run this script again with the sanitizers' libraries in front, or use kernels compiled with them if so run."""
    if "LD_PRELOAD" not in os.environ:
        found = [
            subprocess.run([*build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
            for name in ("libasan.so", "libubsan.so")
        ]
        os.environ |= {
            "LD_PRELOAD": " ".join(done.stdout.strip() for done in found),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",  # so that the ends of bytes objects are guarded too
            "TIERLINE_KERNELS": "cpu",
        }
        os.execv(sys.executable, [sys.executable, *sys.argv])
    flags = (*SANITIZE, "-fvisibility=hidden", "-fsanitize=address,undefined")
    build.library = functools.partial(build.library, flags=flags)


def main() -> int:
    parser = argparse.ArgumentParser(description="Hostile bytes for every decoder.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all codecs together")
    parser.add_argument("--only", help="one token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("mutants", "atheris"), default="mutants")
    parser.add_argument("--sanitize", action="store_true", help="kernels with both sanitizers")
    arguments = parser.parse_args()
    if arguments.sanitize:
        sanitized()
    chosen = [arguments.only] if arguments.only else tokens()
    share = -(-arguments.inputs // len(chosen))
    if arguments.engine == "atheris":
        return atheris_all(chosen, share, arguments.seed)
    print(json.dumps({"environment": environment(), "sanitize": arguments.sanitize}), flush=True)
    if not arguments.sanitize:  # the sanitizers map terabytes
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))
    num_decoded, num_inputs = 0, 0
    for token in chosen:
        line = run_mutants(token, share, arguments.seed)
        num_decoded, num_inputs = num_decoded + int(str(line["decoded"])), num_inputs + share
        print(json.dumps(line), flush=True)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"inputs": num_inputs, "decoded": num_decoded, "failures": 0, "peak_rss_mib": peak_kib >> 10}))
    return 0


def atheris_all(chosen: list[str], share: int, seed: int) -> int:
    """A process per codec, for the library ends the one it runs in."""
    if len(chosen) == 1:
        run_atheris(chosen[0], share, seed)
    for token in chosen:
        command = [sys.executable, sys.argv[0], "--engine=atheris", f"--only={token}", f"--inputs={share}"]
        done = subprocess.run([*command, f"--seed={seed}"], capture_output=True, text=True, check=False)
        print(json.dumps({"codec": token, "engine": "atheris", "inputs": share, "status": done.returncode}), flush=True)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
