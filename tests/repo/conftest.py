"""What the hygiene tests share: the repository's root and the files that git knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[str]:
    """Paths of all tracked files that exist, relative to the root, with forward slashes."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [p for p in listing.stdout.decode().split("\0") if p and (root / p).is_file()]
