"""Reads what the devices' `jsonl` sinks write, while they write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


class Answers:
    """The records of all views so far; `poll` takes in what was added."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files`: by view."""
        self.records: dict[str, list[Record]] = {view: [] for view in files}
        self._files = dict(files)
        self._offsets = dict.fromkeys(files, 0)

    def poll(self) -> None:
        for view, path in self._files.items():
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._offsets[view])
                chunk = file.read()
            whole = chunk[: chunk.rfind(b"\n") + 1]
            self._offsets[view] += len(whole)
            self.records[view] += [json.loads(line) for line in whole.splitlines()]

    def samples(self, view: str, num_samples: int, num_views: int, after: int = 0) -> dict[int, Record]:
        """By sample, the first answer of a view after its `after` first that had so many views and was not degraded."""
        found: dict[int, Record] = {}
        for record in self.records[view][after:]:
            if record["num_views"] == num_views and not record["degraded"]:
                found.setdefault(record["id"]["seq"] % num_samples, record)
        return found
