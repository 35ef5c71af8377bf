"""The stamp that every measurement carries: hardware, operating system, versions, load.

Versions are read from package metadata: nothing is imported. Unknown facts are left out, never guessed.
"""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("tierline", "numpy", "grpcio", "protobuf", "onnxruntime", "torch", "tensorrt")


def environment(root: Path = Path("/")) -> dict[str, Any]:
    """Where a measurement was made. `root` is the file system to read `/proc` and `/sys` from."""
    stamp: dict[str, Any] = {
        "hardware": _hardware(root),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
    }
    with suppress(OSError, AttributeError):
        stamp["load_average"] = [round(load, 2) for load in os.getloadavg()]
    return stamp


def machine(root: Path = Path("/")) -> str:
    """The same for all processes of one running machine, containers included; empty where the system does not say."""
    return _read(root / "proc/sys/kernel/random/boot_id").strip()[:8]


def _versions() -> dict[str, str]:
    """Installed versions; a package that is not installed is absent."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _hardware(root: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"cores": _usable_cores()}
    cpu = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    if cpu:
        facts["cpu"] = cpu.group(1).strip()
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if memory:
        facts["memory_mib"] = int(memory.group(1)) // 1024
    board = _read(root / "proc/device-tree/model").strip("\0\n ")
    if board:
        facts["board"] = board
    power_mode = _power_mode(root)
    if power_mode:
        facts["power_mode"] = power_mode
    temperatures = _temperatures_c(root)
    if temperatures:
        facts["temperatures_c"] = temperatures
    clocks = _clocks_mhz(root)
    if clocks:
        facts["clocks_mhz"] = clocks
    return facts


def _usable_cores() -> int:
    """Cores that this process may run on, which a container or taskset can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _power_mode(root: Path) -> str:
    """NVIDIA Jetson's power mode by number and name, as `nvpmodel` keeps it; empty elsewhere."""
    status = re.search(r"pmode:0*(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if not status:
        return ""
    table = _read(root / "etc/nvpmodel.conf")
    name = re.search(rf"^\s*<\s*POWER_MODEL\s+ID={status.group(1)}\s+NAME=(\S+?)\s*>", table, re.MULTILINE)
    return f"{status.group(1)} {name.group(1)}" if name else status.group(1)


def _temperatures_c(root: Path) -> dict[str, float]:
    """Temperature of each thermal zone by its type, degrees Celsius; sensors that are off are left out."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, milli = _read(zone / "type").strip(), _read(zone / "temp").strip()
        if kind and milli.lstrip("-").isdecimal() and int(milli) > -100_000:
            found[kind] = int(milli) / 1000
    return found


def _clocks_mhz(root: Path) -> dict[str, float]:
    """What cores and devices run at now: each CPU frequency policy in kHz, and each device of devfreq (on a Jetson the
    GPU, as `17000000.gpu`) in Hz."""
    found = {}
    for folder, file, per_mhz in (
        ("sys/devices/system/cpu/cpufreq", "scaling_cur_freq", 1e3),
        ("sys/class/devfreq", "cur_freq", 1e6),
    ):
        for device in sorted((root / folder).glob("*")):
            text = _read(device / file).strip()
            if text.isdecimal():
                found[device.name] = round(int(text) / per_mhz, 1)
    return found


def _read(path: Path) -> str:
    """A small file's text; empty when it is absent or the driver refuses, as Jetson's idle sensors do."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
