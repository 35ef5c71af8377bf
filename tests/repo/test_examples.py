"""The examples run as they stand: the hierarchy with the Bundle of the package, and the client against it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("address", "samples", "code", "message"),
    [
        ("127.0.0.1:9", "good.npz", 8, "127.0.0.1:9: no node answers here"),
        ("nowhere", "good.npz", 2, "address 'nowhere': expected host:port"),
        ("10.1.1.1:7443", "good.npz", 11, "10.1.1.1:7443: no certificate"),
        ("127.0.0.1:9", "none.npz", 3, "none.npz: no samples to read"),
        ("127.0.0.1:9", "text.npz", 3, "text.npz: no samples to read"),
        ("127.0.0.1:9", "short.npz", 3, "short.npz: no samples to read"),
        ("127.0.0.1:9", "other.npz", 3, "other.npz: no samples to read"),
        ("127.0.0.1:9", "half.npz", 3, "half.npz: no samples to read"),
        ("127.0.0.1:9", "empty.npz", 3, "empty.npz: no samples to read"),
        ("127.0.0.1:9", "plain.npy", 3, "plain.npy: no samples to read"),
    ],
)
def test_the_clients_mistakes_are_one_line(
    root: Path, tmp_path: Path, address: str, samples: str, code: int, message: str
) -> None:
    images = np.zeros((8, 4, 4), np.uint8)
    np.savez(tmp_path / "good.npz", images=images, labels=np.zeros(8, int))
    np.savez(tmp_path / "short.npz", images=images[:2], labels=np.zeros(2, int))
    np.savez(tmp_path / "other.npz", x=images)
    np.save(tmp_path / "plain.npy", images)
    (tmp_path / "half.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("hello")
    command = [sys.executable, str(root / "examples" / "client.py"), address, samples]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert re.fullmatch(f"client: {message}.*\n", done.stderr), done.stderr
