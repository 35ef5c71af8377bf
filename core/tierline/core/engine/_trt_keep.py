"""A TensorRT engine from the cache, else built now and kept."""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tierline.core.engine._cache import EngineCache, Key
from tierline.core.engine._trt_build import OnStep, Wish, build
from tierline.kernels.cuda import Device

_log = logging.getLogger("tierline.engine")
_TEGRA = Path("/etc/nv_tegra_release")
_RELEASE = re.compile(r"# (R\d+) \(release\), REVISION: ([\d.]+)")


class Kept(NamedTuple):
    """A serialised engine and its file."""

    plan: bytes
    path: Path
    is_new: bool


def obtain(
    trt: Any,
    model: bytes,
    name: str,
    wish: Wish,
    gpu: Device | None,
    cache: EngineCache,
    *,
    again: bool = False,
    on_step: OnStep | None = None,
) -> Kept:
    """For `gpu`, or for `wish.arch` where that is None; `again` builds whatever the cache holds. Raises EngineError."""
    key = key_of(trt, model, wish, gpu)
    # One that was built ahead for the architecture, on whatever machine, will do as well.
    for known in () if again else dict.fromkeys((key, msgspec.structs.replace(key, gpu=""))):
        if (plan := cache.load(known)) is not None:
            return Kept(plan, cache.path(known), False)
    cache.check_writable()
    _log.info("%s: building an engine with %s %s for %s", name, key.kind, key.version, key.gpu or key.arch)
    started = time.monotonic()
    built = build(trt, model, name, wish, timing=cache.timing(key), on_step=on_step)
    path = cache.store(key, built.plan, section=name, precision=built.precision)
    cache.store_timing(key, built.timing)
    _log.info("%s: built in %.1f s, %s", name, time.monotonic() - started, built.precision)
    return Kept(built.plan, path, True)


def key_of(trt: Any, model: bytes, wish: Wish, gpu: Device | None, tegra: Path = _TEGRA) -> Key:
    """What an engine of this model would depend on here."""
    return Key(
        onnx=hashlib.sha256(model).hexdigest(),
        kind=trt.__name__,
        version=trt.__version__,
        arch=wish.arch if gpu is None else gpu.arch,
        gpu="" if gpu is None else gpu.name,
        machine=platform.machine(),
        jetpack=_jetson_release(tegra),
        max_batch=wish.max_batch,
        typical_batch=wish.typical_batch,
        workspace_bytes=wish.workspace_bytes,
    )


def _jetson_release(path: Path) -> str:
    """Such as `R36.4.3`, which goes with one JetPack; empty on other machines."""
    try:
        found = _RELEASE.match(path.read_text("utf-8", "replace"))
    except OSError:
        return ""
    return f"{found[1]}.{found[2]}" if found else ""
