"""Commands about codecs and kernels: what they print, and how they refuse."""

from __future__ import annotations

import csv
import ctypes
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.configs import AGENT

from tierline.cli.doctor import kernels
from tierline.cli.main import main
from tierline.cli.trial import codec as trial
from tierline.cli.trial import codec_gpu
from tierline.core import catalog
from tierline.core.coding import codec_for
from tierline.core.errors import MissingDependency
from tierline.kernels import affine, build, cubin, library
from tierline.kernels.cuda import CudaError, Device


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.0)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    told = capsys.readouterr()
    return code, told.out, told.err


def test_bench_codec_tells_size_error_and_speed(capsys: Any, tmp_path: Path) -> None:
    x_B = np.maximum(np.random.default_rng(1).normal(size=(4, 3, 8, 8)), 0).astype(np.float32)
    np.save(tmp_path / "x.npy", x_B)
    tokens = ("affine:4", "bitplane", "float16")
    words = [f"--codec={token}" for token in tokens]
    code, out, _ = run(capsys, "bench", "codec", "--data", str(tmp_path / "x.npy"), "--format", "json", *words)
    rows = json.loads(out)["codecs"]
    assert (code, [row["codec"] for row in rows]) == (0, ["memcpy", *tokens])
    assert (rows[0]["bytes"], rows[0]["max_error"], rows[0]["bits_per_value"]) == (x_B.nbytes, 0.0, 32.0)
    for row in rows[1:]:
        codec = codec_for(row["codec"])
        assert row["bytes"] == len(codec.encode(x_B).data)
        assert 0 < row["rms_error"] <= row["max_error"] <= codec.max_error(x_B) * 1.01
        assert min(row["encode_mb_s"], row["decode_mb_s"]) > 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64", "bool"])
def test_bench_codec_makes_values_up(capsys: Any, dtype: str) -> None:
    code, out, _ = run(capsys, "bench", "codec", "--shape=2x3x4x4", f"--dtype={dtype}", "--codec=raw", "--format=csv")
    (copied, raw) = csv.DictReader(io.StringIO(out))
    assert (code, raw["bytes"], raw["max_error"]) == (0, copied["bytes"], "0.0")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--codec=affine:9"], 6, "bits is 9"),
        (["--codec=affin"], 6, 'nearest is "affine"'),
        (["--shape=8y"], 2, "--shape 8y"),
        (["--shape=0x3"], 2, "numbers above 0"),
        (["--shape=99999x99999x99"], 2, "more than"),
        (["--shape=300000000", "--dtype=int64"], 2, "more than 1024 MiB of int64"),
        (["--device=tpu"], 2, "--device tpu: cpu or cuda"),
        (["--dtype=float64"], 2, "--dtype float64"),
        (["--dtype=int32", "--codec=affine"], 6, "codec 'affine' on int32"),
        (["--data=nowhere.npy"], 3, "nowhere.npy: cannot be read"),
    ],
)
def test_bench_codec_refuses_by_name(capsys: Any, words: list[str], code: int, told: str) -> None:
    found, _, error = run(capsys, "bench", "codec", *words)
    assert (found, told in error, len(error.splitlines())) == (code, True, 1), error


def test_a_codec_that_cannot_take_the_data_has_a_row_that_says_so(capsys: Any) -> None:
    words = [f"--codec={token}" for token in ("jpeg", "affine", "radix")]
    code, out, _ = run(capsys, "bench", "codec", "--shape=2x3x4x4", "--format=csv", *words)
    rows = {row["codec"]: row for row in csv.DictReader(io.StringIO(out))}
    assert (code, list(rows)) == (0, ["memcpy", "jpeg", "affine", "radix"])
    assert (rows["affine"]["note"], rows["radix"]["bytes"]) == ("", "") and int(rows["affine"]["bytes"])
    assert "takes batches of uint8 images" in rows["jpeg"]["note"] and rows["radix"]["note"].startswith("radix: ")


def test_bench_codec_without_a_gpu(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(ordinal: int = 0) -> Device:
        raise CudaError("no NVIDIA driver: libcuda.so.1; install one, or use the codecs of the CPU")

    monkeypatch.setattr(codec_gpu, "device", none)
    code, out, error = run(capsys, "bench", "codec", "--shape=2x8", "--device=cuda")
    assert (code, out, len(error.splitlines())) == (13, "", 1)
    assert "--device cuda: no NVIDIA driver: libcuda.so.1; install one" in error


def test_algo_ls_tells_what_a_token_may_say(capsys: Any) -> None:
    _, out, _ = run(capsys, "algo", "ls", "codec", "--format", "json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows) == set(catalog.names("codec"))
    assert rows["affine"]["role"] == "values" and "bits=8" in rows["affine"]["options"]
    assert "float32" in rows["affine"]["dtypes"].split() and rows["affine"]["what"]
    assert {row["role"] for row in rows.values()} <= {"values", "select", "bytes"}


def test_algo_ls_without_a_room_has_equal_rows(capsys: Any) -> None:
    code, out, _ = run(capsys, "algo", "ls", "--format", "json")
    rows = json.loads(out)
    assert (code, {row["room"] for row in rows}) == (0, set(catalog.ROOMS))
    assert {tuple(row) for row in rows} == {("room", "name", "what")}


def test_algo_ls_names_what_is_missing(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = catalog.load

    def lacking(room: str, name: str, *part: str) -> Any:
        if name == "affine":
            raise MissingDependency("needs the Python package 'scales': pip install scales")
        return load(room, name, *part)

    monkeypatch.setattr(catalog, "load", lacking)
    _, out, _ = run(capsys, "algo", "ls", "codec", "--format", "json")
    (row,) = (row for row in json.loads(out) if row["name"] == "affine")
    assert row["role"] == "not here: needs the Python package 'scales': pip install scales"


def test_algo_show_by_name_alone(capsys: Any) -> None:
    assert run(capsys, "algo", "show", "bitplane")[1] == run(capsys, "algo", "show", "codec", "bitplane")[1]
    code, _, error = run(capsys, "algo", "show", "affin")
    assert (code, 'nearest is "affine"' in error) == (2, True)


def test_algo_show_explains_the_stages_of_a_token(capsys: Any) -> None:
    assert run(capsys, "algo", "show", "affine:04")[1].startswith("codec affine:04, on the wire affine:4\n\nStages:\n")
    code, out, _ = run(capsys, "algo", "show", "codec", "sparse_bitmap+affine:4")
    assert (code, out) == (0, run(capsys, "algo", "show", "sparse_bitmap+affine:4")[1])
    assert "  sparse_bitmap (select): Zeros, as a ReLU leaves them" in out
    assert "  affine:4 (values): float32 values on an even scale" in out
    assert "bits: int = 8" in out and "Codec `affine`." not in out
    for token, told in (("affine:99", "bits is 99"), ("sparse_bitmap+affin:4", 'nearest is "affine"')):
        code, _, error = run(capsys, "algo", "show", token)
        assert (code, told in error, len(error.splitlines())) == (6, True, 1)


def test_algo_show_does_not_say_a_name_again(capsys: Any) -> None:
    for words, stray in ((["affine"], "Codec `affine`."), (["exit", "entropy"], "Exit rule `entropy`.")):
        assert stray not in run(capsys, "algo", "show", *words)[1]
    assert "Engine `onnxruntime`. `threads` work" in run(capsys, "algo", "show", "onnxruntime")[1]


def test_kernels_build_and_show(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tmp_path / "kernels.so"
    made.write_bytes(b"12345")
    asked = []
    monkeypatch.setattr(build, "library", lambda cxx=None: asked.append(cxx) or made)
    code, out, _ = run(capsys, "kernels", "build", "--cxx", "c++", "--format", "json")
    assert (code, asked, json.loads(out)) == (0, ["c++"], [{"target": "cpu", "bytes": 5, "library": str(made)}])
    code, _, error = run(capsys, "kernels", "show")
    assert code == 0 and not error


def test_kernels_build_without_a_compiler(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(cxx: str | None = None) -> Path:
        raise build.BuildError("no C++ compiler on PATH; install g++ or clang, or set CXX")

    monkeypatch.setattr(build, "library", none)
    code, _, error = run(capsys, "kernels", "build")
    assert (code, "install g++ or clang" in error) == (13, True)


def test_kernels_build_makes_cubins_too(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tmp_path / "kernels.so"
    made.write_bytes(b"12345")
    monkeypatch.setattr(build, "library", lambda cxx=None: made)

    def cubins(targets: tuple[str, ...], told: Any) -> dict[str, Path | str]:
        built: dict[str, Path | str] = {t: made if t == "sm_87" else "refused" for t in targets}
        for target, found in built.items():
            told(target, found)
        return built

    monkeypatch.setattr(cubin, "build", cubins)
    code, out, error = run(capsys, "kernels", "build", "--gpu", "sm_87", "--gpu", "sm_72", "--format", "json")
    assert [(row["target"], row["bytes"]) for row in json.loads(out)] == [("cpu", 5), ("sm_87", 5), ("sm_72", 0)]
    assert (code, "--gpu sm_72: " in error) == (2, True)  # a target that was named
    code, out, error = run(capsys, "kernels", "build", "--gpu", "all", "--format", "json")
    assert [row["target"] for row in json.loads(out)] == ["cpu", *cubin.TARGETS]
    assert (code, [line.split(":")[0] for line in error.splitlines()]) == (0, list(cubin.TARGETS))  # as each ends
    code, out, _ = run(capsys, "kernels", "build", "--gpu", "all", "--gpu", "sm_72", "--format", "json")
    assert (code, [row["target"] for row in json.loads(out)]) == (2, ["cpu", *cubin.TARGETS, "sm_72"])
    code, _, error = run(capsys, "kernels", "build", "--gpu", "orin")
    assert (code, "--gpu orin" in error) == (2, True)


def test_the_doctor_says_why_numpy_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERLINE_KERNELS", "numpy")
    assert (kernels().state, kernels().found) == ("warn", "NumPy: TIERLINE_KERNELS=numpy")
    monkeypatch.delenv("TIERLINE_KERNELS")

    def none() -> str:
        raise build.BuildError("no C++ compiler on PATH")

    monkeypatch.setattr(build, "cached", lambda: None)
    monkeypatch.setattr(build, "compiler", none)
    assert (kernels().state, kernels().found) == ("warn", "NumPy: no C++ compiler on PATH")
    monkeypatch.setenv("TIERLINE_KERNELS", "cpu")
    assert kernels().state == "fail"
    monkeypatch.setenv("TIERLINE_KERNELS", "gpu")
    assert (kernels().state, kernels().found) == ("fail", "TIERLINE_KERNELS=gpu")


def test_the_doctor_compiles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "cached", lambda: None)
    monkeypatch.setattr(build, "compiler", lambda: ("/usr/bin/c++",))
    assert (kernels().state, kernels().found) == ("ok", "the first use compiles them with /usr/bin/c++")


def test_the_doctor_names_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "cached", lambda: tmp_path / "here.so")
    assert kernels().fix == f"delete {tmp_path / 'here.so'}: the next use compiles it anew"
    monkeypatch.setattr(ctypes, "CDLL", lambda path: path)
    assert (kernels().state, kernels().found) == ("ok", f"compiled: {tmp_path / 'here.so'}")


def test_a_cache_that_cannot_be_written_is_said(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(build, "compiler", lambda: ("c++",))
    monkeypatch.delenv("TIERLINE_KERNELS", raising=False)
    check = kernels()
    assert (check.state, "Not a directory" in check.found, "TIERLINE_CACHE_DIR" in check.fix) == ("warn", True, True)
    _, out, _ = run(capsys, "kernels", "show", "--format", "json")
    assert json.loads(out)[0]["state"] == "warn"


def test_kernels_build_with_what_is_no_compiler(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path))
    code, _, error = run(capsys, "kernels", "build", "--cxx", "true")
    assert (code, "wrote nothing" in error, len(error.splitlines())) == (13, True, 1)


@pytest.mark.parametrize("command", ["false", "python3"])
def test_kernels_build_with_what_answers_like_no_compiler(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path))
    code, _, error = run(capsys, "kernels", "build", "--cxx", command)
    assert (code, "no C++ compiler, for it does not answer -" in error, len(error.splitlines())) == (13, True, 1), error


def test_a_cxx_that_is_no_command_is_named(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "nosuch-c++ -O2")
    code, _, error = run(capsys, "kernels", "build")
    assert (code, "CXX=nosuch-c++ -O2: no such command" in error) == (13, True), error
    monkeypatch.setattr(build, "cached", lambda: tmp_path / "here.so")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: path)
    assert (kernels().state, "CXX=nosuch-c++ -O2" in kernels().fix) == ("warn", True)


def test_bench_codec_says_which_kernels_it_measured(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench", "codec", "--shape=2x8", "--codec=affine", "--format=csv")

    def note(out: str) -> str:
        return next(csv.DictReader(io.StringIO(out)))["note"]

    asked = []
    monkeypatch.setattr(trial, "library", lambda *, wait: asked.append(wait) or object())
    _, out, error = run(capsys, *words)
    assert (note(out), asked, error) == ("codecs: compiled kernels", [True], "")

    def none(*, wait: bool) -> None:
        warnings.warn("codecs run in NumPy, which is slower: no compiler", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(trial, "library", none)
    _, out, error = run(capsys, *words)
    assert (note(out), error) == (
        "codecs: NumPy kernels",
        "warning: codecs run in NumPy, which is slower: no compiler\n",
    )


def test_errors_are_taken_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    x_B = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    whole = trial._errors(x_B, x_B.round())
    monkeypatch.setattr(trial, "SLICE", 4)
    assert trial._errors(x_B, x_B.round()) == pytest.approx(whole)


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A process that has not yet looked for kernels, and a cache that cannot be written."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(library, "_loaders", [])
    monkeypatch.setattr(affine, "_compiled", library.binder(tl_affine_encode_cpu="ppnniinnu:i"))
    return monkeypatch


@pytest.mark.parametrize(("choice", "code", "told"), [("banana", 2, "one of auto"), ("cpu", 13, "TIERLINE_CACHE_DIR")])
@pytest.mark.parametrize("command", ["bench", "edge"])
def test_kernels_that_cannot_be_had_are_one_line(
    capsys: Any, asked_anew: pytest.MonkeyPatch, tmp_path: Path, choice: str, code: int, told: str, command: str
) -> None:
    asked_anew.setenv("TIERLINE_KERNELS", choice)
    (tmp_path / "agent.toml").write_text(AGENT)
    bench = ["bench", "codec", "--shape", "4x8", "--codec", "affine"]
    words = bench if command == "bench" else ["edge", "run", "-c", str(tmp_path / "agent.toml")]
    found, _, error = run(capsys, *words)
    assert (found, told in error, len(error.splitlines())) == (code, True, 1), error
