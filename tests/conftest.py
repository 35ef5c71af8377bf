"""Makes what tests share (`tests/support`) importable, and the tiny Bundle that most of them run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from tiny_bundle import make_tiny_bundle

from tierline.core.bundle import Bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three views, three levels, binary features; made in milliseconds."""
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")
