"""The documentation holds together: links lead somewhere, commands and their flags exist, TOML shown can be loaded."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tierline.cli.main import main
from tierline.cloud.config import CloudConfig
from tierline.cloud.hierarchy import HierarchyFile
from tierline.core.config import load
from tierline.edge.config import AgentConfig
from tierline.learning.experiment.file import Experiment

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(page.read_text("utf-8")) if language in languages]


def headings(text: str) -> set[str]:
    """Anchors as GitHub makes them: lower case, punctuation gone, spaces to dashes."""
    found = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def name(page: Path) -> str:
    return page.name if page.parent == ROOT else f"docs/{page.name}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in headings(target.read_text("utf-8"))):
            broken.append(link)
    assert broken == []


def documented() -> list[list[str]]:
    """Every `tierline ...` command of a bash block, its words without the program's name."""
    lines = [line for page in PAGES for block in blocks(page, "bash", "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command[1:] for command in commands if command and command[0] == "tierline"]


NOUNS = ("bench", "cloud", "edge", "node", "algo", "engine", "config", "plan", "kernels", "model", "job")


def test_commands_and_their_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = documented()
    assert len(commands) > 20
    helps: dict[str, str] = {}
    for command in commands:
        verb = " ".join(command[: 2 if command[0] in NOUNS else 1])
        if verb not in helps:
            try:
                code = main([*verb.split(), "--help"])
            except SystemExit as end:  # argparse's way
                code = int(end.code or 0)
            helps[verb] = capsys.readouterr().out
            assert code == 0, verb
        flags = [word.partition("=")[0] for word in command if word.startswith("--")]
        unknown = [flag for flag in flags if f"{flag} " not in helps[verb]]
        assert unknown == [], shlex.join(command)


def kind_of(text: str) -> type[Any]:
    if re.search(r"^\[\[node\]\]", text, re.M):
        return HierarchyFile
    if re.search(r"^\[\[arm\]\]", text, re.M):
        return Experiment
    return CloudConfig if re.search(r"^hierarchy", text, re.M) else AgentConfig


def test_files_shown_can_be_loaded(tmp_path: Path) -> None:
    shown = [block for page in PAGES for block in blocks(page, "toml") if "schema" in block]
    assert {kind_of(block) for block in shown} == {AgentConfig, CloudConfig, Experiment, HierarchyFile}
    for block in shown:
        file = tmp_path / "shown.toml"
        file.write_text(block, "utf-8")
        load(file, kind_of(block), env={}, schema=1)
