"""Bundles that the root keeps: the configured one where it lies, others below `state_dir/bundles/<digest>/`.

An operator offers a `bundle.json`, puts the files that are missing, and then asks for a Plan that runs it. A file is
written under another name, checked against its digest, and only then renamed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tierline.core.bundle import MANIFEST, Bundle, digest_of, parse_manifest
from tierline.core.errors import BundleError, ConfigError, DigestMismatch

MAX_FILE_BYTES = 8 << 30
"""Of one file of a Bundle."""


class Shelf:
    """Raises BundleError, DigestMismatch, and ConfigError where nothing can be written."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "bundles"
        self.given: Bundle | None = None
        """The configured one."""

    def find(self, digest: str) -> Bundle:
        """A Bundle whose files are all here. Raises BundleError."""
        if self.given is not None and self.given.digest == digest:
            return self.given
        folder = self._folder / digest
        if not digest.isalnum() or not (folder / MANIFEST).is_file():
            raise BundleError(f"no Bundle {digest[:12]!r} is kept here; apply it with --bundle FOLDER")
        bundle = Bundle.open(folder)
        missing = self._missing(bundle)
        if missing:
            raise BundleError(f"{folder}: {len(missing)} files of it are missing; apply it again with --bundle FOLDER")
        return bundle

    def make(self, write: Callable[[Path], Bundle]) -> Bundle:
        """One that is written here: `write` fills a folder."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".made-", dir=self._folder) as made:
                digest = write(Path(made) / "bundle").digest
                if not (self._folder / digest / MANIFEST).is_file():
                    (Path(made) / "bundle").replace(self._folder / digest)
        except OSError as error:
            raise ConfigError(f"{self._folder}: a Bundle cannot be kept there ({error.strerror})") from error
        return self.find(digest)

    def offer(self, manifest: bytes) -> list[str]:
        """Digests of the files that are not here yet."""
        parse_manifest(manifest, "the offered bundle.json")
        digest = digest_of(manifest)
        if self.given is not None and self.given.digest == digest:
            return []
        folder = self._folder / digest
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(folder / MANIFEST, manifest)
        except OSError as error:
            raise ConfigError(f"{folder}: a Bundle cannot be kept there ({error.strerror})") from error
        return self._missing(Bundle.open(folder))

    async def put(self, bundle: str, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Keep one file."""
        folder = self._folder / bundle
        if not bundle.isalnum() or not (folder / MANIFEST).is_file():
            raise BundleError(f"Bundle {bundle[:12]!r} was not offered; send its bundle.json first")
        names = [name for name, known in Bundle.open(folder).manifest.files.items() if known == digest]
        if not names:
            raise BundleError(f"Bundle {bundle[:12]!r} lists no file with digest {digest[:12]!r}")
        beside, seen, num_bytes = folder / f".{digest}.part", hashlib.sha256(), 0
        try:
            with beside.open("wb") as file:
                async for chunk in chunks:
                    num_bytes += len(chunk)
                    if num_bytes > MAX_FILE_BYTES:
                        raise BundleError(f"{names[0]}: over {MAX_FILE_BYTES} bytes")
                    seen.update(chunk)
                    file.write(chunk)
            if seen.hexdigest() != digest:
                raise DigestMismatch(f"{names[0]}: sha256 is {seen.hexdigest()[:12]}..., announced {digest[:12]}...")
            for name in names[1:]:
                _replace(folder / name, beside.read_bytes())
            beside.replace(folder / names[0])
        except OSError as error:
            raise ConfigError(f"{folder}: a Bundle cannot be kept there ({error.strerror})") from error
        finally:
            beside.unlink(missing_ok=True)

    @staticmethod
    def _missing(bundle: Bundle) -> list[str]:
        files = bundle.manifest.files
        return sorted({known for name, known in files.items() if not (bundle.folder / name).is_file()})


def _replace(path: Path, raw: bytes) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(raw)
    beside.replace(path)
