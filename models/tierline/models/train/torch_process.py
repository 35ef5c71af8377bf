"""What torch does to the process it trains in, held back: threads by number of cores, a cache folder left behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread and restore the number after.

    Sums split over threads round differently, so weights would depend on the machine's cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_compiler_cache() -> Iterator[None]:
    """For the process's first optimizer: its making imports torch's compiler, which makes a cache folder at import.

    Nothing is compiled here, so that folder goes into a temporary one and away, unless the user named one.
    """
    if _CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tierline-") as folder:
        os.environ[_CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(_CACHE, None)
