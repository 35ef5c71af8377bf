"""The runner's logic (copies, parts, graphs, errors) against a fake TensorRT on the mock driver. No GPU is proven."""

from __future__ import annotations

import fake_tensorrt
import numpy as np
import onnxruntime
import pytest
from fake_tensorrt import MAX_BATCH, State
from onnx_models import conv_relu, gemm, relu

from tierline.core.engine._trt_run import Runner
from tierline.core.errors import EngineError
from tierline.core.types import Array, TensorSpec
from tierline.kernels.cuda import Device

RNG = np.random.default_rng(8)


def runner(gpu: Device, model: bytes, *, graphs: bool = True) -> Runner:
    return Runner(fake_tensorrt, b"plan of " + model, "section", gpu, graphs=graphs)


def expected(model: bytes, x_B: Array) -> Array:
    result: Array = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(["y"], {"x": x_B})[0]
    return result


def images(num_rows: int) -> Array:
    return RNG.normal(size=(num_rows, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("graphs", [False, True])
def test_outputs_of_any_batch_in_any_order(gpu: Device, graphs: bool) -> None:
    model = conv_relu()
    tried = runner(gpu, model, graphs=graphs)
    assert tried.spec.inputs == {"x": TensorSpec("float32", (1, 8, 8))}
    assert tried.spec.outputs == {"y": TensorSpec("float32", (4, 8, 8))}
    for num_rows in (2, 2, 2, 1, 2, MAX_BATCH, 3 * MAX_BATCH + 1, 1, 1, 2):
        x_B = images(num_rows)
        y_B = tried.run({"x": x_B}, num_rows)["y"]
        np.testing.assert_allclose(y_B, expected(model, x_B), atol=1e-6)
    tried.close()


def test_a_batch_size_seen_twice_is_replayed(gpu: Device) -> None:
    tried = runner(gpu, conv_relu())
    for num_rows in (2, 2, 2, 2, 1, 2):
        tried.run({"x": images(num_rows)}, num_rows)
    assert State.num_executed == 6
    assert State.num_queued == 4  # two of 2 rows, the recording of them, one of 1 row
    tried.close()


def test_what_cannot_be_recorded_is_queued_every_time(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_relu()
    tried = runner(gpu, model)
    x_B = images(2)
    for capturable in (True, True):
        tried.run({"x": x_B}, 2)
        monkeypatch.setattr(State, "capturable", not capturable)
    monkeypatch.setattr(State, "capturable", True)
    np.testing.assert_allclose(tried.run({"x": x_B}, 2)["y"], expected(model, x_B), atol=1e-6)
    assert State.num_queued == 4
    tried.close()


def test_any_memory_layout_and_float16(gpu: Device) -> None:
    model = gemm(np.float16)
    tried = runner(gpu, model)
    x_B = RNG.normal(size=(3, 64)).astype(np.float16)
    first = tried.run({"x": np.asfortranarray(x_B)}, 3)["y"]
    second = tried.run({"x": x_B[::-1]}, 3)["y"]
    np.testing.assert_allclose(first, expected(model, x_B), atol=1e-2)
    np.testing.assert_allclose(second[::-1], first, atol=1e-2)  # and the first was not overwritten
    tried.close()


def test_a_refused_engine_is_an_error_with_the_reason(gpu: Device) -> None:
    with pytest.raises(EngineError, match=r"^section: fake_tensorrt does not take this .*\(not an engine\)$"):
        Runner(fake_tensorrt, b"something else", "section", gpu)


def test_a_fixed_batch_is_refused_and_nothing_is_left_behind(gpu: Device) -> None:
    with pytest.raises(EngineError, match="dynamic batch axis"):
        runner(gpu, relu(1, 2))


def test_a_failed_run_is_an_error(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = runner(gpu, conv_relu(), graphs=False)
    monkeypatch.setattr(State, "capturable", False)
    monkeypatch.setattr(State, "num_queued", 5)
    with pytest.raises(EngineError, match="section: fake_tensorrt failed to run"):
        tried.run({"x": images(1)}, 1)
    tried.close()
