"""A node's store of Bundles: files come from the parent by digest, are checked, and stay for the next start.

Layout: `state_dir/bundles/<digest of bundle.json>/`, written under another name first and then renamed, so that a
folder with the right name is whole as far as it goes. `state_dir/plan.json` is the last Plan, so that a node whose
parent is away can start and answer alone.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tierline.core.bundle import MANIFEST, Bundle, Manifest, digest_of, parse_manifest
from tierline.core.errors import ConfigError, DigestMismatch, TierlineError
from tierline.core.flow.loaded import files_at
from tierline.core.link.fleet import Fetch
from tierline.core.plan import Plan, parse_plan

PLAN = "plan.json"
REVOKED = "revoked.json"


class BundleStore:
    """Bundles and the last Plan below one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"node.state_dir = {str(state_dir)!r}: cannot be created ({error.strerror})") from error
        self._revoked: tuple[str, ...] = ()
        path = state_dir / REVOKED
        if path.is_file():
            try:
                self._revoked = tuple(msgspec.json.decode(path.read_bytes(), type=list[str]))
            except msgspec.MsgspecError as error:
                raise ConfigError(
                    f"{path}: not a list of serials ({error}); delete it, the parent sends it anew"
                ) from error

    async def get(self, digest: str, manifest: bytes, plan: Plan, node_id: str, fetch: Fetch) -> Bundle:
        """The Bundle with what this node needs of it, fetching what is missing. Raises DigestMismatch."""
        if digest_of(manifest) != digest:
            raise DigestMismatch(
                f"the parent's bundle.json is {digest_of(manifest)[:12]}..., it announced {digest[:12]}..."
            )
        folder = self._root / "bundles" / digest
        folder.mkdir(parents=True, exist_ok=True)
        parsed = parse_manifest(manifest, "the parent's bundle.json")
        for name in needed_files(parsed, plan, node_id):
            expected = parsed.files[name]
            path = folder / name
            if path.is_file() and digest_of(path.read_bytes()) == expected:
                continue
            raw = await fetch(expected)
            if digest_of(raw) != expected:
                raise DigestMismatch(f"{name}: the parent sent {digest_of(raw)[:12]}..., asked for {expected[:12]}...")
            _replace(path, raw)
        _replace(folder / MANIFEST, manifest)
        return Bundle.open(folder)

    def remember(self, plan: Plan) -> None:
        """Keep the Plan for a start without a parent."""
        _replace(self._root / PLAN, plan.document())

    def remember_revoked(self, serials: tuple[str, ...]) -> None:
        """Keep what the parent said of revoked certificates, for children that come while it is away."""
        if serials != self._revoked:
            self._revoked = serials
            _replace(self._root / REVOKED, msgspec.json.encode(serials))

    def revoked(self) -> tuple[str, ...]:
        return self._revoked

    def last(self) -> tuple[Plan, Bundle] | None:
        """The last Plan and its Bundle, or None where there is none that can be used."""
        path = self._root / PLAN
        if not path.is_file():
            return None
        try:
            plan = parse_plan(path.read_bytes(), str(path))
            return plan, Bundle.open(self._root / "bundles" / plan.bundle)
        except TierlineError:
            return None


def needed_files(manifest: Manifest, plan: Plan, node_id: str) -> list[str]:
    """Files a node needs: all where it has children to pass them to, else those of its own Sections and heads."""
    placement = plan.placement(node_id)
    if any(other.parent == node_id for other in plan.nodes.values()):
        return list(manifest.files)
    return files_at(manifest, placement)


def _replace(path: Path, raw: bytes) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(raw)
    beside.replace(path)
