"""Files of public data sets: first in TIERLINE_DATA_DIR, then in the cache, then from their original address."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tierline.core.errors import DataError
from tierline.models.data.dataset import Report

_CHUNK = 1 << 16
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Remote:
    """A file at its original address. `digest` is `algorithm:hex`, as its publisher states it."""

    urls: tuple[str, ...]
    digest: str

    @property
    def file(self) -> str:
        return self.urls[0].rsplit("/", 1)[1]


def data_dir() -> Path | None:
    """The folder that TIERLINE_DATA_DIR names, if it is set."""
    value = os.environ.get("TIERLINE_DATA_DIR")
    return Path(value) if value else None


def find_local(*names: str) -> Path | None:
    """The first of these files or folders that stands in TIERLINE_DATA_DIR."""
    folder = data_dir()
    candidates = [] if folder is None else [folder / name for name in names]
    return next((path for path in candidates if path.exists()), None)


def fetch(remote: Remote, data: str, put: str, report: Report | None = None) -> Path:
    """Path of a downloaded, checked file. Raises DataError that says what to put where when there is no network.

    `data` names the data set, `put` the file that would make the download unnecessary.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierline" / data
    path = cache / remote.file
    reasons: list[str] = []
    failure: Exception | None = None
    # Two sets may have files of the same name, so a digest decides even about a local file.
    for local in (find_local(f"{data}/{remote.file}"), find_local(remote.file), path if path.exists() else None):
        if local is not None:
            found = _digest(local, remote.digest)
            if found == remote.digest:
                return local
            reasons.append(f"{local}: digest is {found}, expected {remote.digest}")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for url in remote.urls:
            try:
                _download(url, part, report)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                failure = error
                continue
            found = _digest(part, remote.digest)
            if found == remote.digest:
                part.replace(path)
                return path
            reasons.append(f"{url}: digest is {found}, expected {remote.digest}")
    except OSError as error:
        raise DataError(f"data {data!r}: {cache} cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
    found_wrong = f" ({'; '.join(reasons)})" if reasons else ""
    raise DataError(
        f"data {data!r}: not at hand and cannot be downloaded{found_wrong}; put {put} into TIERLINE_DATA_DIR"
    ) from failure


def _download(url: str, part: Path, report: Report | None) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, part.open("wb") as out:
        total = int(answer.headers.get("Content-Length") or 0)
        done = 0
        while chunk := answer.read(_CHUNK):
            out.write(chunk)
            done += len(chunk)
            if report is not None:
                report(f"download {part.name.split('.')[0]}", done / total if total else 0.0)


def _digest(path: Path, like: str) -> str:
    """`algorithm:hex` of a file, with the algorithm of `like`."""
    algorithm = like.partition(":")[0]
    with path.open("rb") as file:
        state = hashlib.new(algorithm)
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return f"{algorithm}:{state.hexdigest()}"
