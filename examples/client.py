"""Asks a running hierarchy: its status, the answer to an image of our own, and the answers it gives by itself.

    tierline up examples/hierarchy.toml    # in another terminal
    python examples/client.py 127.0.0.1:PORT build/digits/samples.npz

`tierline up` prints where `gate` takes questions.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from zipfile import BadZipFile

import numpy as np

from tierline.core.client import Client
from tierline.core.errors import DataError, TierlineError

SAMPLE = 7
NUM_WATCHED = 6


def load(path: str) -> tuple[Any, int]:
    """One image and its label."""
    try:
        with np.load(path) as arrays:
            return arrays["images"][SAMPLE], int(arrays["labels"][SAMPLE])
    except (OSError, EOFError, ValueError, LookupError, TypeError, BadZipFile) as error:
        raise DataError(f"{path}: no samples to read ({error}); `tierline train --samples` writes some") from error


async def main(address: str, samples: str) -> None:
    image, label = load(samples)
    async with Client(address) as client:
        views: list[str] = []
        for node, record in (await client.status()).items():
            print(f"{node}: {record['tier']} with {len(record['views'])} views, counts {record['counts']}")
            views = views or record["views"]
        # The node cuts each view's patch out of the whole image, as its cameras' pictures are cut.
        answer = await client.infer(dict.fromkeys(views, image))
        print(f"sample {SAMPLE}: {answer['label']} (truth {label}), exit {answer['exit']}, {answer['total_ms']:.1f} ms")
        watched = 0
        async for answer in client.subscribe(views[:1]):
            print(f"{answer['id']['seq']:>6}  {answer['label']}  {answer['exit']:<6} {answer['total_ms']:7.1f} ms")
            watched += 1
            if watched == NUM_WATCHED:
                break


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/client.py HOST:PORT SAMPLES.npz")
    try:
        asyncio.run(main(*sys.argv[1:]))
    except TierlineError as error:  # every error of tierline is one line, and knows its exit code
        print(f"client: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
