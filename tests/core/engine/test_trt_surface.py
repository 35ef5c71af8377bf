"""What our code names of TensorRT's API is there in each version, or probed before it is used.

The names are read from our source. TensorRT's libraries need not be there: each version's real Python bindings are
imported with empty libraries under the names that they ask for.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tierline.core.engine import _trt_build, _trt_run

pytestmark = [pytest.mark.slow, pytest.mark.tensorrt]

VERSIONS = [
    "tensorrt_cu12_bindings==10.3.0",
    "tensorrt_cu13_bindings==10.13.3.9",
    "tensorrt_cu13_bindings==10.16.1.11",
    "tensorrt_cu13_bindings==11.4.0.106",
    "tensorrt_rtx_cu13_bindings==1.7.1.116",
]
CLASSES = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "first": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "layer": "ILayer",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_runtime": "Runtime",
    "_context": "IExecutionContext",
}
"""What variables of our code hold."""
GUARDED = {
    "IBuilderConfig.num_compute_capabilities": "IBuilderConfig.set_compute_capability",
    "ComputeCapability": "IBuilderConfig.set_compute_capability",
    "IBuilderConfig.set_timing_cache": "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache": "IBuilderConfig.create_timing_cache",
}
"""Names used only behind the probe for another."""


def names() -> tuple[set[str], set[str]]:
    """What our code uses, and what of it it probes, as `Class.attribute` or `module attribute`."""
    used, probed = set(), set()
    for module in (_trt_build, _trt_run):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and (name := _dotted(node)):
                used.add(name)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("hasattr", "getattr"):
                at, what = node.args[:2]
                if isinstance(what, ast.Constant) and (name := _dotted(ast.Attribute(at, what.value))):
                    probed.add(name)
    return {name for name in used if not name.endswith("__")}, probed


def _dotted(node: ast.Attribute) -> str:
    """`trt.ILogger.ERROR` to `ILogger.ERROR`, `self._context.x` to `IExecutionContext.x`; empty for other things."""
    path: list[str] = []
    at: ast.expr = node
    while isinstance(at, ast.Attribute):
        path.insert(0, at.attr)
        at = at.value
    if isinstance(at, ast.Name) and at.id != "self":
        path.insert(0, at.id)
    owner = CLASSES.get(path[0])
    if owner is None or len(path) < 2:
        return ""
    return ".".join(path[1:3] if owner == "" else [owner, path[1]])


def test_the_names_are_found_in_our_source() -> None:
    used, probed = names()
    for name in (
        "ILogger.INTERNAL_ERROR",
        "Builder.build_serialized_network",
        "OnnxParser.parse",
        "ParserError.node_operator",
        "ITensor.shape",
        "ICudaEngine.get_tensor_mode",
        "Runtime.deserialize_cuda_engine",
        "IExecutionContext.execute_async_v3",
        "TensorIOMode.INPUT",
    ):
        assert name in used
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in probed
    assert "IBuilderConfig.progress_monitor" in probed


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_is_there_or_probed(version: str, tmp_path: Path) -> None:
    package = _bindings(version, tmp_path)
    used, probed = names()
    missing = _missing(package, sorted(used | probed), tmp_path)
    behind_a_probe = {name for name in missing if GUARDED.get(name) in missing}
    assert missing - probed - behind_a_probe == set()


def _bindings(version: str, folder: Path) -> str:
    """Unpack a version's bindings and make the libraries that they ask for. The package's name."""
    for tool in ("gcc", "readelf", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", version]
    if subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip(f"{version} cannot be downloaded for this Python")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    module = next(path for path in folder.glob("*_bindings/tensorrt*.so"))
    symbols = re.findall(r" U ((?:create|get|init)\w+)$", _output("nm", "-D", str(module)), re.MULTILINE)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols))
    for library in re.findall(r"\[(lib(?:nv|tensorrt)\S+)\]", _output("readelf", "-d", str(module))):
        _output("gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", str(source), "-o", str(folder / library))
    return module.parent.name


def _missing(package: str, wanted: list[str], folder: Path) -> set[str]:
    """Of `Class.attribute` and module attributes."""
    code = (
        f"import json, sys\nimport {package} as trt\nfrom functools import reduce\nmissing = []\n"
        "for name in json.load(sys.stdin):\n"
        "    try: reduce(getattr, name.split('.'), trt)\n"
        "    except AttributeError: missing.append(name)\n"
        "json.dump(missing, sys.stdout)"
    )
    env = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, input=json.dumps(wanted), env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
