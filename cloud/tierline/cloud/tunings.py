"""What Plans were chosen from, in `state_dir/tunings/<digest>.json`: kept, so that a root can choose again."""

from __future__ import annotations

from pathlib import Path

from tierline.cloud.tuner.tuning import Tuning, parse_tuning
from tierline.core.errors import ConfigError, PlanError
from tierline.core.plan import Hierarchy


class Tunings:
    """The folder of one root."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "tunings"

    def keep(self, tuning: Tuning) -> str:
        """Its digest. Raises ConfigError."""
        digest = tuning.digest()
        path = self._folder / f"{digest}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".part")
            beside.write_bytes(tuning.document())
            beside.replace(path)
        except OSError as error:
            raise ConfigError(f"{self._folder}: cannot be written ({error.strerror})") from error
        return digest

    def find(self, digest: str) -> Tuning:
        """Raises PlanError."""
        path = self._folder / f"{digest}.json"
        try:
            return parse_tuning(path.read_bytes(), str(path))
        except OSError as error:
            raise PlanError(
                f"{path}: what the Plan was chosen from is gone ({error.strerror}); apply it again with --tuned FOLDER"
            ) from None


def check_hierarchy(tuning: Tuning, hierarchy: Hierarchy) -> None:
    """Raises PlanError where it was tuned for other nodes."""
    if set(tuning.hierarchy.nodes) != set(hierarchy.nodes):
        there, here = (", ".join(sorted(n.id for n in h.nodes)) for h in (tuning.hierarchy, hierarchy))
        raise PlanError(f"it was tuned for another hierarchy ({there}; running here is {here}); measure and tune again")
