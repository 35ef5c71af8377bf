"""cloud.toml: what is true of this server, and which hierarchy and Bundle it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from tierline.cloud.drift import HOLD_S, REST_S
from tierline.cloud.hierarchy import find_bundle, load_file
from tierline.core.config import Loaded, load
from tierline.core.config.sections import (
    Engine,
    Learn,
    Metrics,
    Tls,
    absolute_paths,
    check_address,
    check_id,
)
from tierline.core.flow.knobs import PlanKnobs as PlanKnobs
from tierline.core.link.tls import TlsFiles

SCHEMA = 1


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who this is and where it listens."""

    id: str = "cloud"
    listen: str = "127.0.0.1:7443"
    """host:port for children."""
    state_dir: str = ""
    """Authority, keys and invitations; empty: below XDG_STATE_HOME."""
    insecure: bool = False
    """Allow plain connections beyond this machine."""

    def __post_init__(self) -> None:
        check_id(self.id)
        if not self.listen:
            raise ValueError("listen: is empty; write host:port, e.g. 0.0.0.0:7443")
        check_address("listen", self.listen)


class Enrol(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where invited nodes may ask for a certificate; empty: nowhere."""

    listen: str = ""

    def __post_init__(self) -> None:
        check_address("listen", self.listen)


class Drifting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Table `[drift]`: what follows when nodes measure something else than the Plan was chosen for."""

    retune: Literal["off", "log", "on"] = "on"
    """`on`: search again and go over to a better Plan; `log`: say what that would be; `off`: do not look. Only Plans of
    `tierline tune` are concerned, as long as no hand has changed what was chosen."""
    min_gain: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    """Part of the goal's figure that a switch has to save."""
    hold_s: Annotated[float, msgspec.Meta(ge=0)] = HOLD_S
    """So long a quantity has to be out of its range."""
    rest_s: Annotated[float, msgspec.Meta(ge=0)] = REST_S
    """Shortest time between two searches."""


class CloudConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of cloud.toml; `load_cloud` has made its paths absolute."""

    schema: int
    hierarchy: str
    """Path of hierarchy.toml."""
    bundle: str = ""
    """Folder of the Bundle; empty: the hierarchy's `model`."""
    node: Node = Node()
    engine: Engine = Engine()
    enrol: Enrol = Enrol()
    metrics: Metrics = Metrics()
    learn: Learn = Learn()
    plan: PlanKnobs = PlanKnobs()
    drift: Drifting = Drifting()
    tls: Tls = Tls()

    @property
    def state_dir(self) -> Path:
        return Path(self.node.state_dir)

    def tls_files(self) -> TlsFiles | None:
        """Certificate and key of this node; None for plain connections."""
        return self.tls.files(self.state_dir)


def load_cloud(
    path: Path, *, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Loaded[CloudConfig]:
    """Read and check cloud.toml. Raises ConfigError."""
    loaded = load(path, CloudConfig, overrides=overrides, env=env, schema=SCHEMA)
    paths = absolute_paths(loaded, env)
    hierarchy = loaded.locate("hierarchy", loaded.value.hierarchy)
    paths["bundle"] = paths["bundle"] or str(find_bundle(load_file(Path(hierarchy), env=env), env))
    value = msgspec.structs.replace(loaded.value, hierarchy=hierarchy, **paths)
    return Loaded(path, value, loaded.origin)
