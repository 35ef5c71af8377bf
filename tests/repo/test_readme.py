"""The README's quick start works: its make targets exist, its verbs answer `--help`, and (slow) its commands run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TIERLINE = [sys.executable, "-c", "import sys; from tierline.cli.main import main; sys.exit(main())"]


def quick_start(text: str) -> list[list[str]]:
    """Commands of the bash blocks below the heading "Quick start", split into words, without comments and prompts."""
    section = re.search(r"^(#+) +quick start *\n(.*?)(?=^#{1,2} |\Z)", without_fences(text), re.M | re.S | re.I)
    if section is None:
        return []
    inside = text[section.start() : section.end()]
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", inside, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def without_fences(text: str) -> str:
    """The text, with fenced blocks blanked at equal length, so that a comment in one is not taken for a heading."""
    return re.sub(r"^```.*?^```", lambda m: re.sub(r"[^\n]", ".", m.group()), text, flags=re.M | re.S)


@pytest.fixture(scope="module")
def commands(root: Path) -> list[list[str]]:
    readme = root / "README.md"
    if not readme.is_file():
        pytest.skip("no README.md yet")
    return quick_start(readme.read_text("utf-8"))


def test_commands_are_found_in_a_text() -> None:
    text = """# x
~~~bash
no
~~~
## Quick start
~~~bash
# c
make demo  # why
$ tierline up \\
  a.toml
~~~
### Then
~~~python
no
~~~
~~~bash
make test
~~~
## Next
~~~bash
no
~~~
""".replace("~", "`")
    assert quick_start(text) == [["make", "demo"], ["tierline", "up", "a.toml"], ["make", "test"]]


def test_quick_start_names_make_targets_that_exist(root: Path, commands: list[list[str]]) -> None:
    targets = {t for c in commands if c[0] == "make" for t in c[1:] if "=" not in t}
    assert {"demo", "test"} <= targets
    known = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text("utf-8"), re.M))
    assert targets - known == set()


def test_quick_start_verbs_exist(commands: list[list[str]]) -> None:
    if importlib.util.find_spec("tierline.cli.main") is None:
        pytest.skip("no command line yet")
    for command in commands:
        if Path(command[0]).name != "tierline":
            continue
        words = [w for w in command[1:] if not w.startswith("-")]
        done = subprocess.run([*TIERLINE, *words, "--help"], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"


@pytest.mark.slow
def test_quick_start_runs(root: Path, commands: list[list[str]]) -> None:
    for command in commands:
        # `make test` is the one that must not call itself.
        if command[0] != "make" or "test" in command:
            continue
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=1800)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
