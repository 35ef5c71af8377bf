"""Folders that a run would spoil, or cannot write, are refused before anything starts, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierline.cli import main
from tierline.cli.folders import check_file, check_new_folder, fresh_run_dir, run_folder, whole_folder
from tierline.core.errors import ConfigError, NodeFailed


@pytest.mark.parametrize("kept", ["hierarchy.toml", "logs"])
def test_a_used_run_folder_is_refused(tmp_path: Path, kept: str) -> None:
    fresh_run_dir(tmp_path / "a" / "run")
    fresh_run_dir(tmp_path / "a" / "run")
    (tmp_path / "a" / "run" / kept).mkdir()
    with pytest.raises(ConfigError, match=r"^--run-dir \S+/a/run: holds a run already; give another folder, or remove"):
        fresh_run_dir(tmp_path / "a" / "run")


def test_looking_makes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("kept")
    check_new_folder("--out", tmp_path / "a" / "b")
    check_file("--output", tmp_path / "new")
    check_file("--output", file)
    check_file("--output", None)
    assert (list(tmp_path.iterdir()), file.read_text()) == ([file], "kept")
    for path in (tmp_path, file / "below", tmp_path / "a" / "new"):
        with pytest.raises(ConfigError, match=rf"^--picture {path}: cannot be written: .*; give another"):
            check_file("--picture", path)
    with pytest.raises(ConfigError, match=r"^--out .*: cannot be written: Not a directory"):
        check_new_folder("--out", file / "below")


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--run-dir", "/proc/x"],
        ["demo", "--picture", "none/x.svg"],
        ["demo", "--output", "none/x.json"],
        ["bench", "latency", "--output", "none/x.json"],
        ["train", "--data", "digits", "--out", "/proc/x"],
        ["train", "--data", "digits", "--out", "new", "--output", "none/x.json"],
    ],
)
def test_an_unwritable_place_is_one_line_before_the_run(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"tierline: {arguments[-2]} {arguments[-1]}: cannot be written: ")
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_the_temporary_folder_of_a_failed_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said: list[str] = []
    with run_folder(None, "t-", said.append) as folder:
        (folder / "logs").mkdir()
    with pytest.raises(NodeFailed), run_folder(None, "t-", said.append):
        raise NodeFailed("before any process")
    with pytest.raises(KeyboardInterrupt), run_folder(None, "t-", said.append) as folder:
        (folder / "logs").mkdir()
        raise KeyboardInterrupt
    assert (list(tmp_path.iterdir()), said) == ([], [])
    with pytest.raises(NodeFailed), run_folder(None, "t-", said.append) as folder:
        (folder / "logs").mkdir()
        raise NodeFailed("see its log")
    assert list(tmp_path.iterdir()) == [folder]
    assert said == [f"files and logs of the failed run are kept in {folder}"]
    with run_folder(tmp_path / "given", "t-", said.append) as given:
        assert given == tmp_path / "given"


def test_a_new_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    for _ in range(2):  # the second time it exists
        with whole_folder(out, last="b") as folder:
            for name in "abc":
                (folder / name).write_text("new")
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "a", "b", "c", "out"]
        (out / "a").write_text("old")
        with pytest.raises(KeyboardInterrupt), whole_folder(out, last="b") as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt
        assert (out / "a").read_text() == "old"
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "a", "b", "c", "out"]
