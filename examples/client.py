"""Asks a running hierarchy: its status, the answer to an image of our own, and the answers it gives by itself.

    tierline up examples/hierarchy.toml    # in another terminal
    python examples/client.py 127.0.0.1:PORT build/digits/samples.npz

`tierline up` prints where `gate` takes questions.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from tierline.core.client import Client

NUM_WATCHED = 6


async def main(address: str, samples: str) -> None:
    with np.load(samples) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    async with Client(address) as client:
        for node, record in (await client.status()).items():
            print(f"{node}: {record['tier']} with {len(record['views'])} views, counts {record['counts']}")
            views = record["views"]
        # The node cuts each view's patch out of the whole image, as its cameras' pictures are cut.
        answer = await client.infer(dict.fromkeys(views, images[7]))
        print(f"sample 7: {answer['label']} (truth {labels[7]}), exit {answer['exit']}, {answer['total_ms']:.1f} ms")
        watched = 0
        async for answer in client.subscribe(["view-0"]):
            print(f"{answer['id']['seq']:>6}  {answer['label']}  {answer['exit']:<6} {answer['total_ms']:7.1f} ms")
            watched += 1
            if watched == NUM_WATCHED:
                break


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/client.py HOST:PORT SAMPLES.npz")
    asyncio.run(main(*sys.argv[1:]))
