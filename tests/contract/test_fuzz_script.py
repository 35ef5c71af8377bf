"""The script that sends a million hostile inputs runs, here with a few hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tierline.core import catalog

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_codecs.py"


def test_every_codec_takes_part() -> None:
    words = [sys.executable, str(SCRIPT), "--inputs", "300", "--seed", "77"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    stages = {stage.split(":")[0] for line in lines[1:-1] for stage in line["codec"].split("+")}
    assert stages == set(catalog.names("codec"))
    assert lines[-1]["failures"] == 0 and lines[-1]["inputs"] >= 300
