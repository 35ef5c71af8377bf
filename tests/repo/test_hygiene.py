"""Tracked text names no folder of somebody's machine and no package registry: a clone works anywhere."""

from __future__ import annotations

import re
from pathlib import Path

# Each pattern is written so that it does not match its own source line.
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:root|work|home/\w+|Users/\w+|opt/wheels|opt/pypi|tmp/dev)/")
REGISTRY = re.compile(r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|registry[.]npmjs|index-url[= ]+\w+://")


def findings(text: str) -> list[str]:
    return [m.group() for pattern in (MACHINE_PATH, REGISTRY) for m in pattern.finditer(text)]


def test_the_patterns_find_what_they_should() -> None:
    slash = "/"
    bad = [
        f"see {slash}root/x",
        f'open("{slash}home/me/a")',
        f"{slash}opt/wheels{slash}a.whl",
        "https://files.python" + "hosted.org/x",
        "--extra-index-url" + " https://example.org/simple",
    ]
    assert all(findings(text) for text in bad)
    good = ["cloud.example.org/work/x", "a/root/b", "/var/lib/tierline", "--index-url $(TORCH_INDEX)", "./home/x/"]
    assert not any(findings(text) for text in good)


def test_no_machine_path_and_no_registry(root: Path, tracked: list[str]) -> None:
    found = {}
    for path in tracked:
        content = (root / path).read_bytes()
        if b"\0" not in content and (hits := findings(content.decode("utf-8"))):
            found[path] = hits
    assert found == {}
