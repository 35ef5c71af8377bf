"""What is known of the images of a folder: classes by subfolder, objects by a text file each, numbers by one table.

Objects: `NAME.txt` beside `NAME.png`, or below `labels/` where the images are below `images/`; a line for each object,
`class x y w h`, x and y its middle, all four as shares of the image's width and height. An image without such a file
has no objects. Numbers: `values.csv` in the folder, first line `file,NAME,...`, then a line for each image.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError, DataError
from tierline.core.types import Box, Truth

KINDS = ("index", "label", "boxes", "values", "none")
TABLE = "values.csv"


def truths_of(kind: str, root: Path, files: Sequence[Path]) -> list[Truth | None]:
    """One per file, None where nothing is known. Raises ConfigError, DataError."""
    if kind not in KINDS:
        raise ConfigError(f"truth = {kind!r}: no such kind{nearest(kind, KINDS)}")
    read: dict[str, Callable[[Path, Sequence[Path]], list[Truth | None]]] = {
        "index": _classes,
        "label": _labels,
        "boxes": lambda root, files: [_boxes(file) for file in files],
        "values": _values,
    }
    return [None] * len(files) if kind == "none" else read[kind](root, files)


def _labels(root: Path, files: Sequence[Path]) -> list[Truth | None]:
    parts = [file.relative_to(root).parts for file in files]
    return [p[0] if len(p) > 1 else None for p in parts]


def _classes(root: Path, files: Sequence[Path]) -> list[Truth | None]:
    """Indices of the sorted subfolder names."""
    labels = _labels(root, files)
    order = {label: index for index, label in enumerate(sorted({str(x) for x in labels if x is not None}))}
    return [None if label is None else order[str(label)] for label in labels]


def _boxes(file: Path) -> tuple[Box, ...]:
    path = file.with_suffix(".txt")
    parts = list(path.parts)
    if not path.is_file() and "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        path = Path(*parts)
    if not path.is_file():
        return ()
    boxes = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            index, *rest = line.split()
            x, y, width, height = map(float, rest)
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            boxes.append(Box(int(index), "", 1.0, corners))
        except ValueError:
            raise DataError(f"{path}:{number}: not `class x y w h`: {line.strip()[:60]!r}") from None
    return tuple(boxes)


def value_names(root: Path) -> list[str]:
    """Names of the columns of `values.csv`. Raises DataError."""
    return _table(root)[0][1:]


def _values(root: Path, files: Sequence[Path]) -> list[Truth | None]:
    rows = _table(root)
    found: dict[str, Truth] = {}
    for number, row in enumerate(rows[1:], 2):
        try:
            found[row[0]] = tuple(float(word) for word in row[1:])
        except ValueError:
            raise DataError(f"{root / TABLE}:{number}: not a file and numbers: {','.join(row)[:60]!r}") from None
        if len(row) != len(rows[0]):
            raise DataError(f"{root / TABLE}:{number}: {len(row)} columns, the first line has {len(rows[0])}")
    return [found.get(file.relative_to(root).as_posix()) for file in files]


def _table(root: Path) -> list[list[str]]:
    try:
        with (root / TABLE).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise DataError(f"{root / TABLE}: cannot be read ({error.strerror}); it tells the numbers of images") from None
    if not rows or len(rows[0]) < 2 or rows[0][0] != "file":
        raise DataError(f"{root / TABLE}: its first line must be file,NAME,...")
    return rows
