"""The examples run as they stand: the hierarchy with the Bundle of the package, and the client against it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TIERLINE = [sys.executable, "-c", "import sys; from tierline.cli.main import main; sys.exit(main())"]


def test_the_client_meets_the_hierarchy(root: Path, tmp_path: Path) -> None:
    bundle = root / "cli" / "tierline" / "cli" / "assets" / "digits"
    samples = bundle / "samples.npz"
    source = f"dataset:{samples}?loop=true&rate=20"
    changes = [f"model={bundle}", f"up.source={source}", "up.link=", f"up.sink=jsonl:{tmp_path}/answers.jsonl"]
    command = [*TIERLINE, "up", str(root / "examples" / "hierarchy.toml"), "--run-dir", str(tmp_path / "run")]
    command += [word for change in changes for word in ("--set", change)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stdout
        try:
            address = next((m[1] for line in up.stdout if (m := re.search(r"gate takes questions on (\S+)", line))), "")
            assert address, up.communicate()
            client = [sys.executable, str(root / "examples" / "client.py"), address, str(samples)]
            done = subprocess.run(client, capture_output=True, text=True, check=False, timeout=30)
        finally:
            up.terminate()
        _, complaint = up.communicate(timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("gate: edge with 6 views, counts ")
    assert re.fullmatch(r"sample 7: \d \(truth \d\), exit (local|edge|cloud), .* ms", lines[1])
    assert len(lines) == 2 + 6
    assert (up.returncode, complaint) == (0, "")
