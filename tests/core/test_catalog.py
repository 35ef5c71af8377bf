from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tierline.core import catalog
from tierline.core.errors import ConfigError, MissingDependency

ALGORITHM = """
import math
from fractions import Fraction

class _Helper:
    pass

class Mine:
    def __init__(self, *, gain: float = 1.0) -> None:
        self.gain = gain
"""


def test_names_are_files_and_private_files_are_not() -> None:
    assert {"affine", "bitplane", "float16", "raw"} <= set(catalog.names("codec"))
    assert not [name for room in catalog.ROOMS for name in catalog.names(room) if name.startswith("_")]
    assert list(catalog.names("exit")) == sorted(catalog.names("exit"))


@pytest.mark.parametrize("room", ["codec", "exit", "aggregate", "task"])
def test_every_member_has_a_docstring_and_one_class_named_like_its_file(room: str) -> None:
    for name in catalog.names(room):
        cls = catalog.load(room, name)
        assert cls.__name__ == name.title().replace("_", "")
        assert sys.modules[cls.__module__].__doc__


def test_only_the_named_file_is_imported() -> None:
    code = (
        "import sys; from tierline.core import catalog; catalog.make('codec', 'raw'); catalog.names('engine');"
        "print([m for m in sys.modules if m in ('tierline.core.codec.affine', 'torch', 'onnx', 'onnxruntime')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_framework_named_modules_reach_the_real_frameworks() -> None:
    import onnxruntime

    assert catalog.load("engine", "onnxruntime").__module__ == "tierline.core.engine.onnxruntime"
    assert hasattr(onnxruntime, "InferenceSession")


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no such codec: 'affin8'; nearest is \"affine\""):
        catalog.load("codec", "affin8")
    with pytest.raises(ConfigError, match="valid: affine, bfloat16, bitplane"):
        catalog.load("codec", "zzzz")
    with pytest.raises(ConfigError, match="no such codec"):
        catalog.load("codec", "_check")


def test_a_wrong_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no option 'label'; nearest is \"labels\""):
        catalog.make("task", "classification", label=["a"])


def test_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(ALGORITHM)
    assert catalog.make("codec", str(path), gain=2.0).gain == 2.0
    with pytest.raises(ConfigError, match="no option"):
        catalog.make("codec", str(path), speed=1)
    path.write_text(ALGORITHM + "class Second:\n    pass\n")
    with pytest.raises(ConfigError, match="exactly one public class, this defines 2"):
        catalog.load("codec", str(path))
    with pytest.raises(ConfigError, match="no such file"):
        catalog.load("codec", str(tmp_path / "absent.py"))


HALVES = """
class Server:
    def __init__(self, *, share: float = 1.0, quorum: int = 0) -> None:
        self.got = (share, quorum)

class Worker:
    def __init__(self, *, share: float = 1.0) -> None:
        self.got = (share,)
"""


def test_an_algorithm_of_several_parts(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HALVES)
    assert list(catalog.parts("strategy", str(path))) == ["Server", "Worker"]
    assert catalog.make("strategy", str(path), "Worker", share=0.5).got == (0.5,)
    with pytest.raises(ConfigError, match="no option 'quorum'"):
        catalog.make("strategy", str(path), "Worker", quorum=1)
    with pytest.raises(ConfigError, match="defines no class 'Sever'; nearest is \"Server\""):
        catalog.load("strategy", str(path), "Sever")
    build = catalog.maker("strategy", str(path), {"share": 0.5, "quorum": 3})
    assert (build("Server").got, build("Worker").got) == ((0.5, 3), (0.5,))
    with pytest.raises(ConfigError, match="no option 'qorum'; nearest is \"quorum\""):
        catalog.maker("strategy", str(path), {"qorum": 3})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for module in ("tierline.core.engine.reference", "tierline.core.engine._onnx"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingDependency, match="engine 'reference' needs the Python package 'onnx"):
        catalog.load("engine", "reference")
