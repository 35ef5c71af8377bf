from __future__ import annotations

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
import tierline.learning as root
from tierline.core import catalog
links = {"link", "office", "_outbox", "_relay"}
hosts = {"experiment.measure", "experiment.scene", "fleet.learner", "fleet.seat"}
over_links = {f"tierline.learning.driver.{name}" for name in links} | {f"tierline.learning.{name}" for name in hosts}
names = {module.name for module in pkgutil.walk_packages(root.__path__, "tierline.learning.")}
for name in sorted(names - over_links):
    importlib.import_module(name)
for room in ("gossip", "topology", "reduce"):
    for name in catalog.names(room):
        catalog.make(room, name)
for name in catalog.names("strategy"):
    [catalog.make("strategy", name, part) for part in ("Server", "Worker")]
foreign = {"torch", "onnx", "onnxruntime", "grpc", "sklearn", "tierline.v1", "tierline.models"}
print(len([m for m in sys.modules if m.startswith("tierline.learning.")]), sorted(foreign & set(sys.modules)))
for name in over_links & names:
    importlib.import_module(name)
print(sorted(foreign & set(sys.modules)))
"""


def test_all_of_learning_runs_on_numpy_alone() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    first, over_links = result.stdout.splitlines()
    num_modules, foreign = first.split(maxsplit=1)
    assert int(num_modules) > 12
    assert foreign == "[]"
    assert over_links == "['grpc', 'tierline.v1']"


def test_naming_the_rooms_imports_no_learning() -> None:
    code = "import sys; import tierline.core.catalog; print([m for m in sys.modules if 'learning' in m])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
