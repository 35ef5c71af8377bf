"""Engines really built, by TensorRT or TensorRT-RTX (which needs no GPU for it): precisions, batches, every refusal."""

from __future__ import annotations

import importlib
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import conv_relu, gemm, relu, unknown_operator
from trained import lenet_mnist

from tierline.core.bundle import Bundle
from tierline.core.candidates import candidates_of
from tierline.core.engine._trt_build import Wish, build, logger
from tierline.core.errors import EngineError
from tierline.models.precision.bundle import cut_rows
from tierline.models.precision.convert import convert

pytestmark = pytest.mark.tensorrt


@pytest.fixture(scope="module")
def trt() -> Any:
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("neither tensorrt nor tensorrt_rtx can be imported")


def test_every_section_of_a_bundle_builds_for_a_range_of_batches(trt: Any, tiny_bundle: Bundle) -> None:
    names = [name for name in tiny_bundle.manifest.files if name.endswith(".onnx")]
    assert names
    for name in names:
        built = build(trt, tiny_bundle.read(name), name, Wish(max_batch=16, typical_batch=4))
        assert len(built.plan) > 1000
        assert built.precision == "fp32"


def test_building_twice_gives_the_same_kind_of_engine_and_progress(trt: Any) -> None:
    steps: list[tuple[str, int, int]] = []

    def on_step(*step: Any) -> bool:
        steps.append(step)
        return True

    built = build(trt, conv_relu(), "section", Wish(), on_step=on_step)
    if hasattr(trt, "IProgressMonitor"):
        assert any(done == total > 0 for _, done, total in steps)
    again = build(trt, conv_relu(), "section", Wish(), timing=built.timing)
    assert len(again.plan) == len(built.plan)


def test_a_build_is_ended_on_request(trt: Any) -> None:
    if not hasattr(trt, "IProgressMonitor"):
        pytest.skip("this version cannot be asked to stop")
    with pytest.raises(EngineError, match="cannot build this"):
        build(trt, conv_relu(), "section", Wish(), on_step=lambda *step: False)


def test_float16_is_what_the_file_says(trt: Any) -> None:
    half, single = (build(trt, gemm(dtype), "section", Wish()) for dtype in (np.float16, np.float32))
    assert (half.precision, single.precision) == ("fp16", "fp32")


def test_int8_is_what_the_file_says(trt: Any) -> None:
    built = build(trt, quantised(conv_relu()), "section", Wish(max_batch=8))
    assert "int8" in built.precision.split("+")


@pytest.mark.parametrize(
    ("precision", "computes"), [("float16", "fp16"), ("int8", "int8"), ("float8_e4m3", "fp8")], ids=str
)
def test_every_section_of_a_trained_bundle_builds_in_every_precision(
    trt: Any, tmp_path: Path, precision: str, computes: str
) -> None:
    """Strongly typed: engines compute in what our own conversions wrote, for ranges of batches."""
    bundle = lenet_mnist(tmp_path)
    rows = cut_rows(bundle)
    cuts = candidates_of(bundle.manifest).cuts
    found = set()
    for below, cut in pairwise(cuts):
        heads = [(cut.exit.head, cut.name)] if cut.exit is not None and cut.exit.head is not None else []
        for section, at in [(cut.piece, below.name), *heads]:
            assert section is not None
            source = next(iter(section.inputs))
            made = convert(bundle.read(section.file), [precision], {source: rows[at]}, section.name)[precision]
            arch = "sm_89" if trt.__name__ == "tensorrt_rtx" else ""
            built = build(trt, made, section.name, Wish(max_batch=16, typical_batch=4, arch=arch))
            found |= {*built.precision.split("+")}
    assert computes in found


def quantised(model: bytes) -> bytes:
    """Explicit Q/DQ nodes, symmetric as TensorRT wants them, by ONNX Runtime's static quantiser."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(5)
            self._rows = iter([{"x": rng.normal(size=(4, 1, 8, 8)).astype(np.float32)} for _ in range(3)])

        def get_next(self) -> Any:
            return next(self._rows, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        source.write_bytes(model)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        return target.read_bytes()


def test_an_unknown_operator_is_named_with_its_node(trt: Any) -> None:
    with pytest.raises(EngineError, match=r"^section: node 'strange' \(Frobnicate\): .*; run it with onnxruntime$"):
        build(trt, unknown_operator(), "section", Wish())


@pytest.mark.parametrize("model", [b"", b"not a model", conv_relu()[:100]], ids=["empty", "foreign", "cut"])
def test_what_is_no_model_is_refused(trt: Any, model: bytes) -> None:
    with pytest.raises(EngineError, match=r"^section: not a valid ONNX model: "):
        build(trt, model, "section", Wish())


def test_a_tensor_from_nowhere_is_refused(trt: Any) -> None:
    parsed = onnx.load_model_from_string(conv_relu())
    parsed.graph.node[0].input[1] = "nowhere"
    with pytest.raises(EngineError, match=r"section: node .*Conv"):
        build(trt, parsed.SerializeToString(), "section", Wish())


@pytest.mark.parametrize("shape", [[1, 2], ["b", "w"]], ids=str)
def test_only_the_batch_axis_is_free(trt: Any, shape: list[Any]) -> None:
    with pytest.raises(EngineError, match="batch"):
        build(trt, relu(*shape), "section", Wish())


def test_a_failed_build_says_what_the_builder_said(trt: Any) -> None:
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("the failure is one of TensorRT-RTX")
    with pytest.raises(EngineError, match=r"cannot build this: .*SM75.*FP32 GEMM is not supported") as caught:
        build(trt, gemm(), "section", Wish(arch="sm_75"))
    assert "\n" not in str(caught.value)
    assert build(trt, gemm(), "section", Wish(arch="sm_86")).plan


def test_a_target_that_the_version_lacks_is_refused_with_those_it_has(trt: Any) -> None:
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("TensorRT builds for its own machine")
    with pytest.raises(EngineError, match=r"cannot build for sm_87; it can for sm_75, sm_80"):
        build(trt, gemm(), "section", Wish(arch="sm_87"))


def test_without_a_driver_no_engine_is_deserialised_and_the_log_says_why(trt: Any) -> None:
    from tierline.kernels.cuda import CudaError, device

    try:
        device()
    except CudaError:
        pass
    else:
        pytest.skip("there is a GPU here")
    log = logger(trt)
    assert trt.Runtime(log).deserialize_cuda_engine(build(trt, gemm(), "section", Wish()).plan) is None
    assert "CUDA driver" in log.last_error
