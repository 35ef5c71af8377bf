"""`tierline engine`: engines that are built ahead and kept; nodes build those that they lack by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit
from tierline.core.catalog import load, nearest
from tierline.core.errors import ConfigError, EngineError, UsageError
from tierline.core.types import FLOAT32

if TYPE_CHECKING:
    from rich.progress import TaskID

    from tierline.core.bundle import Bundle, Section

app = typer.Typer(help="Build, list and remove TensorRT engines.", rich_markup_mode=None, add_completion=False)


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Folder of a Bundle.")],
    section: Annotated[list[str] | None, typer.Option("--section", help="Only this one; repeatable.")] = None,
    precision: Annotated[str, typer.Option(help="One that the Bundle holds.")] = FLOAT32,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch; larger ones are run in parts.")] = 64,
    typical_batch: Annotated[int, typer.Option(min=1, help="The batch to be fastest at.")] = 1,
    arch: Annotated[
        str, typer.Option(help="For another GPU than this machine's, such as sm_86; TensorRT-RTX only.")
    ] = "",
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Build the Sections of a Bundle with TensorRT, for the GPU of this machine, and keep them."""
    from rich.console import Console
    from rich.progress import Progress

    from tierline.core.bundle import Bundle
    from tierline.core.engine._cache import EngineCache

    opened = Bundle.open(bundle)
    wanted = _sections(opened, section or ())
    EngineCache().check_writable()
    engine = load("engine", "tensorrt")
    if not arch:
        engine.check()
    rows = []
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        for number, one in enumerate(wanted, 1):
            task = bar.add_task(one.name)

            def on_step(phase: str, done: int, steps: int, task: TaskID = task) -> bool:
                bar.update(task, description=phase, completed=done, total=max(steps, 1))
                return True

            screen.print(f"{one.name} ({number} of {len(wanted)})", highlight=False)
            path, is_new = engine.prepare(
                opened.read(one.file_in(precision)),
                one.name,
                max_batch=max_batch,
                typical_batch=typical_batch,
                arch=arch,
                on_step=on_step,
            )
            bar.remove_task(task)
            rows.append({"section": one.name, "built": "now" if is_new else "before", "file": str(path)})
    emit(rows, form, output)


@app.command()
def ls(form: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """List kept engines; one with a problem is built again when it is needed."""
    from tierline.core.engine._cache import EngineCache

    rows = []
    for entry in EngineCache().entries():
        head = entry.head
        key = head.key if head is not None else None
        rows.append(
            {
                "file": entry.path.name,
                "section": head.section if head is not None else "",
                "precision": head.precision if head is not None else "",
                "batches": f"1-{key.max_batch}" if key is not None else "",
                "made by": f"{key.kind} {key.version}" if key is not None else "",
                "for": f"{key.gpu or 'any'} {key.arch} {key.machine} {key.jetpack}".rstrip() if key is not None else "",
                "bytes": head.num_bytes if head is not None else "",
                "problem": entry.problem,
            }
        )
    emit(rows, form, output)


@app.command()
def rm(
    file: Annotated[list[str] | None, typer.Argument(help="Name in `tierline engine ls`, or its beginning.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Remove kept engines."""
    from tierline.core.engine._cache import EngineCache

    if bool(file) == every:
        raise UsageError("give files, or --all, not both; see `tierline engine ls`")
    cache = EngineCache()
    paths = {entry.path.name: entry.path for entry in cache.entries()}
    chosen = dict.fromkeys(paths) if every else dict.fromkeys(_match(name, list(paths)) for name in file or ())
    for name in chosen:
        cache.remove(paths[name])
        print(f"{name}: removed")


def _match(name: str, names: list[str]) -> str:
    found = [known for known in names if name and known.startswith(name)]
    if len(found) != 1:
        why = "several engines begin so" if found else f"no such engine{nearest(name, names) if names else ''}"
        raise EngineError(f"{name!r}: {why}; see `tierline engine ls`")
    return found[0]


def _sections(bundle: Bundle, names: list[str] | tuple[()]) -> list[Section]:
    """Those named, or all. Raises ConfigError for a name that the Bundle lacks."""
    known = {section.name: section for section in _all(bundle)}
    for name in names:
        if name not in known:
            raise ConfigError(f"{bundle.folder}: no Section {name!r}{nearest(name, list(known))}")
    return [known[name] for name in names or known]


def _all(bundle: Bundle) -> Iterator[Section]:
    for level in bundle.manifest.levels:
        yield from level.sections.values()
        if level.head is not None:
            yield level.head
