"""Imports every tierline module that must load with the base dependencies alone, and fails at the first that does not.

Run as it is in an environment that holds only the wheel. `--block torch ...` makes those imports fail, so that a full
environment proves the same; further arguments limit the check to some packages.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

PACKAGES = ("v1", "kernels", "core", "learning", "edge", "cloud", "cli")
# Modules named after a framework. tierline.models is one as a whole and is not in the list above.
ADAPTERS = {
    "tierline.core.codec.zstd",
    "tierline.core.engine.torch",
    "tierline.core.engine.reference",
    "tierline.core.engine._onnx",
    "tierline.core.engine.tensorrt",
}

# Runs experiments, which train; the command imports it when it is asked for one.
EXPERIMENT = "tierline.cli.experiment."


def modules(package: str) -> list[str]:
    """Names of all modules below a package, itself included; nothing but packages is imported to find them."""
    path = importlib.import_module(package).__path__
    below = [m.name for m in pkgutil.walk_packages(path, f"{package}.", onerror=_raise)]
    return [package, *(name for name in below if not _is_left_out(name))]


def _is_left_out(name: str) -> bool:
    return name in ADAPTERS or name.startswith(EXPERIMENT) or name.endswith(".__main__")


def _raise(name: str) -> None:
    raise ImportError(f"{name}: cannot be imported") from sys.exc_info()[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Import every module that needs no framework.")
    parser.add_argument("packages", nargs="*", help="such as tierline.edge; all but tierline.models by default")
    parser.add_argument("--block", nargs="*", default=[], help="top-level packages to make absent")
    arguments = parser.parse_args()
    for name in arguments.block:
        sys.modules[name] = None  # type: ignore[assignment]  # the documented way to make an import fail
    count = 0
    for package in arguments.packages or [f"tierline.{p}" for p in PACKAGES]:
        for name in modules(package):
            try:
                importlib.import_module(name)
            except ImportError as e:
                print(f"{name}: needs more than the base dependencies: {e}", file=sys.stderr)
                return 1
            count += 1
    print(f"{count} modules imported")
    return 0


if __name__ == "__main__":
    sys.exit(main())
