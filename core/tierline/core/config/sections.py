"""Tables that the files of several roles share, and the checks of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tierline.core.config import Loaded
from tierline.core.link.tls import TlsFiles

NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\s/]*):(\d{1,5})")

Count = Annotated[int, msgspec.Meta(ge=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What runs Sections."""

    prefer: tuple[str, ...] = ("onnxruntime",)
    """Names in the engine room; the first that is installed is used."""
    threads: Count = 1
    inline_ms: Milliseconds = 0.5
    """Sections measured faster than this run on the event loop, slower ones in a thread."""
    max_memory_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """What this process may take. Two Plans are loaded at once only where that fits; 0: no limit."""

    def __post_init__(self) -> None:
        if not self.prefer:
            raise ValueError('prefer = []: name at least one engine, e.g. ["onnxruntime"]')


class Learn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether this node learns, and from what."""

    trainer: Literal["", "torch"] = ""
    """What computes; empty: this node only passes on what others learn."""
    data: str = ""
    """What this node has: the name of a data set, or the path of one. Empty: what an experiment deals it of its own."""
    state: str = ""
    """URL of a PostgreSQL database for journals; empty: files in `state_dir`."""

    def __post_init__(self) -> None:
        if self.state and not self.state.startswith(("postgresql://", "postgres://")):
            raise ValueError("state: give the URL of a PostgreSQL database, postgresql://..., or leave it out")
        if self.state and not self.trainer:
            raise ValueError('state: nothing computes that would be kept there; write trainer = "torch", too')
        if self.data and not self.trainer:
            raise ValueError('data: nothing computes on it; write trainer = "torch", too')


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where Prometheus may ask; empty for nowhere."""

    listen: str = ""

    def __post_init__(self) -> None:
        check_address("listen", self.listen)


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of PEM files; all three, or none for `state_dir/pki` where that exists."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if any((self.ca, self.cert, self.key)) and not all((self.ca, self.cert, self.key)):
            raise ValueError("give ca, cert and key together")

    def files(self, state_dir: Path) -> TlsFiles | None:
        """The files to use; None for plain connections."""
        if self.ca:
            return TlsFiles(Path(self.ca), Path(self.cert), Path(self.key))
        kept = TlsFiles.of_state(state_dir)
        return kept if kept.cert.parent.is_dir() else None


def absolute_paths(loaded: Loaded[Any], env: Mapping[str, str] | None) -> dict[str, Any]:
    """The values of `node`, `bundle`, `tls` and `learn`, which agents and clouds share, with absolute paths."""
    config = loaded.value
    node, tls, learn = config.node, config.tls, config.learn
    data = loaded.locate("learn.data", learn.data)  # a path, or the name of a data set
    state_dir = loaded.locate("node.state_dir", node.state_dir) or str(default_state_dir(node.id, env))
    return {
        "node": msgspec.structs.replace(node, state_dir=state_dir),
        "bundle": loaded.locate("bundle", config.bundle),
        "learn": msgspec.structs.replace(learn, data=data) if Path(data).exists() else learn,
        "tls": Tls(*(loaded.locate(f"tls.{key}", getattr(tls, key)) for key in ("ca", "cert", "key"))),
    }


def check_id(node_id: str) -> None:
    """Raise ValueError unless it can name a node."""
    if not NODE_ID.fullmatch(node_id):
        raise ValueError(f"id = {node_id!r}: 1 to 63 letters, digits, '.', '_' and '-', the first alphanumeric")


def check_address(key: str, address: str, *, host_needed: bool = False) -> None:
    """Raise ValueError unless empty or `host:port`."""
    match = _ADDRESS.fullmatch(address)
    if address and (not match or int(match[2]) > 65535 or (host_needed and (not match[1] or match[2] == "0"))):
        raise ValueError(f"{key} = {address!r}: expected host:port or [ipv6]:port")


def default_state_dir(node_id: str, env: Mapping[str, str] | None = None) -> Path:
    """`$XDG_STATE_HOME/tierline/NODE`, which is `~/.local/state/tierline/NODE` where that is not set."""
    home = (os.environ if env is None else env).get("XDG_STATE_HOME", "")
    return (Path(home) if home else Path.home() / ".local" / "state") / "tierline" / node_id
