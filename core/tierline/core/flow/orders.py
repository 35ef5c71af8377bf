"""What the root tells a node to measure, and what comes back: documents that pass the nodes on their way unread."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from tierline.core.errors import BadFrame
from tierline.core.profile import LinkTime, NodeProfile

MAX_PIECES = 512
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Batch = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=60)]


class OrderedPiece(msgspec.Struct, frozen=True):
    """A piece of the network as an ONNX file: one input, one output."""

    first: _Name
    last: _Name
    precision: _Name
    digest: _Name
    """sha256 of the file, by which it is fetched."""


class OrderedHead(msgspec.Struct, frozen=True):
    """An exit's head as an ONNX file."""

    exit: _Name
    cut: _Name
    precision: _Name
    digest: _Name


class Order(msgspec.Struct, frozen=True):
    """For one node."""

    id: _Name
    node: _Name
    inputs: _Name
    """Digest of rows as the network takes them: a `.npy` file, float32."""
    images: str = ""
    """Digest of the same rows as images: a `.npy` file, uint8 NCHW; empty where there are none."""
    pieces: Annotated[tuple[OrderedPiece, ...], msgspec.Meta(max_length=MAX_PIECES)] = ()
    """Ordered so that the rows at a piece's first cut come out of pieces before it."""
    heads: Annotated[tuple[OrderedHead, ...], msgspec.Meta(max_length=MAX_PIECES)] = ()
    codecs: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    """Tried on the rows at every cut but the last."""
    engines: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()
    """Empty: the one that runs Sections there."""
    batches: Annotated[tuple[_Batch, ...], msgspec.Meta(max_length=16)] = (1,)
    warm_s: _Seconds = 0.5
    run_s: _Seconds = 0.5

    def digests(self) -> list[str]:
        """Of every file that it needs."""
        found = [self.inputs, self.images, *(p.digest for p in self.pieces), *(h.digest for h in self.heads)]
        return [digest for digest in dict.fromkeys(found) if digest]


class Report(msgspec.Struct, frozen=True):
    """What became of an order."""

    order: str
    node: str
    profile: NodeProfile | None = None
    link: LinkTime | None = None
    """To the parent; None at the root."""
    error: str = ""


_D = TypeVar("_D", Order, Report)


def parse(raw: bytes, kind: type[_D], sender: str) -> _D:
    """Raises BadFrame, which says who sent what cannot be read."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise BadFrame(f"{sender}: not a measuring {kind.__name__.lower()}: {error}") from None
