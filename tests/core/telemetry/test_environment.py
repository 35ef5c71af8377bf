"""The environment stamp, on this machine and on a Jetson's files."""

import json
import subprocess
import sys
from pathlib import Path

from tierline.core.telemetry.environment import environment


def test_this_machine_has_the_facts_that_a_measurement_needs() -> None:
    stamp = environment()
    assert stamp["hardware"]["cores"] >= 1
    assert {"numpy", "grpcio", "onnxruntime"} <= stamp["versions"].keys()
    assert stamp["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    json.dumps(stamp)


def test_a_jetson_shows_its_board_power_mode_temperatures_and_clocks(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
        "proc/meminfo": "MemTotal:        7802344 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "var/lib/nvpmodel/status": "pmode:0001",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48562\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
        "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "<unknown>\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    hardware = environment(tmp_path)["hardware"]
    del hardware["cores"]
    assert hardware == {
        "cpu": "ARMv8 Processor rev 1 (v8l)",
        "memory_mib": 7619,
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "power_mode": "1 25W",
        "temperatures_c": {"cpu-thermal": 48.562},
        "clocks_mhz": {"policy0": 1510.4, "17000000.gpu": 624.8},
    }


def test_absent_files_leave_facts_out(tmp_path: Path) -> None:
    assert environment(tmp_path)["hardware"].keys() == {"cores"}


def test_versions_are_read_without_importing_the_packages() -> None:
    code = (
        "import sys; from tierline.core.telemetry.environment import environment; environment();"
        "print([name for name in ('numpy', 'grpc', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
