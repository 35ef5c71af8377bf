"""A tensor's values in blocks of equal length, each coded on a scale of its own; the last one may be shorter."""

from __future__ import annotations

from typing import NamedTuple


class Block(NamedTuple):
    """`num_rows` blocks of `width` values, from value `start` on; `name` is that of their payload."""

    name: str
    start: int
    num_rows: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + self.num_rows * self.width


def blocks(num_values: int, size: int) -> tuple[Block, ...]:
    """All full blocks of `size` values together, then the rest; one block of all values where size is 0."""
    num_full, rest = divmod(num_values, size) if size else (1, 0)
    full = [Block("blocks", 0, num_full, size or num_values)] if num_full else []
    return (*full, *([Block("rest", num_full * size, 1, rest)] if rest else []))
