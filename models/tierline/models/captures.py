"""A user's images, from a folder or a video, exactly as a node's source will give them, with what is known of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tierline.core.errors import DataError
from tierline.core.protocols import Capture
from tierline.core.source._truths import TABLE, value_names
from tierline.core.uri import open_source
from tierline.models.data.folder import SUFFIXES

VIDEO = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".mjpeg", ".mjpg", ".gif", ".m4v", ".ts", ".y4m"})
CLASSES = "classes.txt"
_KIND = {"classification": "label", "detection": "boxes", "regression": "values"}
"""Of truth, by task."""


def is_video(data: Path) -> bool:
    return data.suffix.lower() in VIDEO and not data.is_dir()


def source_uri(data: Path, task: str, size: tuple[int, int], **options: object) -> str:
    """The source of a folder or video for a task and an image of height and width `size`."""
    if is_video(data):
        given = {"width": size[1], "height": size[0], **options}
        scheme, where = "video", data
    else:
        scheme, where = "folder", _looked_at(data)
        kind = "none" if task == "regression" and not (where / TABLE).is_file() else _KIND.get(task, "none")
        given = {"truth": kind, **options}
    return f"{scheme}:{where}?" + "&".join(f"{key}={value}" for key, value in given.items())


@dataclass(frozen=True)
class Captures:
    """Images and frames in order, each in its own size."""

    uri: str
    labels: list[str]
    """Class folders in order, lines of `classes.txt`, or names of the numbers; empty where nothing says so."""
    most: int

    def __iter__(self) -> Iterator[Capture]:
        """Raises DataError, MissingDependency."""
        source, loop = open_source(self.uri, "data", 0), asyncio.new_event_loop()
        try:
            loop.run_until_complete(source.open())
            for _ in range(self.most):
                capture = loop.run_until_complete(source.capture())
                if capture is None:
                    return
                yield capture
        finally:
            loop.run_until_complete(source.close())
            loop.close()


def find_captures(data: Path, task: str, size: tuple[int, int], most: int = 1000) -> Captures:
    """At most so many images of a folder or frames of a video. Of a folder with `train` and `test`, those of `test`.

    Raises DataError where there is nothing of the kind.
    """
    if not data.exists():
        raise DataError(f"{data}: no such folder or file")
    if data.is_file() and not is_video(data):
        raise DataError(f"{data}: neither a folder nor a video ({', '.join(sorted(VIDEO))})")
    return Captures(source_uri(data, task, size), [] if data.is_file() else _labels(_looked_at(data), task), most)


def _looked_at(data: Path) -> Path:
    return data / "test" if {"train", "test"} <= {path.name for path in data.glob("*/")} else data


def _labels(folder: Path, task: str) -> list[str]:
    if task == "regression":
        return value_names(folder) if (folder / TABLE).is_file() else []
    if task == "detection":
        path = folder / CLASSES
        return path.read_text("utf-8").splitlines() if path.is_file() else []
    return sorted(
        {path.relative_to(folder).parts[0] for path in folder.glob("*/**/*") if path.suffix.lower() in SUFFIXES}
    )
