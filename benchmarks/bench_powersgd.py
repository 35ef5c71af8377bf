"""How long does PowerSGD take on one node, beside PyTorch's hook of the same name?

    python benchmarks/bench_powersgd.py [--rows 512] [--columns 512] [--rank 2] [--rounds 30]

One float32 gradient of one matrix, one node, so that sums have one part and no network: what is left is the work of
both factors, the error that is remembered, and the gradient that comes out. Both warm, one thread; the median and the
best of the rounds, in milliseconds. Not equal work: PyTorch's computes in float32 with BLAS; ours adds in fixed point
and in float64 in one order, which gives every node equal bits, and its time includes coding both sums. `error` is
|mean - g|^2 / |g|^2 of the last round, with random gradients that no low rank fits.

Prints JSON lines: environment, then one line per implementation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.telemetry.environment import environment
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Reduce, Reduced
from tierline.learning.fixed import contribution
from tierline.learning.rule import Turn

ME = NodeId("a")


def alone(turn: Effects[Params]) -> Params:
    """Run a reducer's generator where this node is the whole group."""
    answer: Reduced | None = None
    while True:
        try:
            effect = turn.send(answer)
        except StopIteration as end:
            mean: Params = end.value
            return mean
        assert isinstance(effect, Reduce)
        part = contribution(effect.value, weight=effect.weight, num_members=1, fraction_bits=effect.fraction_bits)
        answer = Reduced(effect.value.layout, part, (ME,))


def ours(gradients: np.ndarray, rank: int) -> tuple[list[float], np.ndarray]:
    reducer, took = catalog.make("reduce", "powersgd", rank=rank), []
    for round, g in enumerate(gradients):
        turn = Turn("bench", round, ME, 0.1, frozenset(), frozenset(), {ME: 1.0}, (ME,), {})
        began = time.perf_counter()
        mean = alone(reducer.mean("g", Params.from_arrays({"w": g}), turn))
        took.append(time.perf_counter() - began)
    return took, mean["w"]


def pytorchs(gradients: np.ndarray, rank: int) -> tuple[list[float], np.ndarray]:
    """The hook of a layer y = W x: with x the identity and y's gradient g', W's is g."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    took: list[float] = []
    rows, columns = gradients.shape[1:]
    model = nn.parallel.DistributedDataParallel(nn.Linear(columns, rows, bias=False))
    state = PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2, min_compression_rate=1)

    def timed(state: Any, bucket: Any) -> Any:
        began = time.perf_counter()
        future = powerSGD_hook(state, bucket)
        future.wait()
        took.append(time.perf_counter() - began)
        return future

    timed.__annotations__.clear()  # torch takes these types or none, and reads names as they stand here
    model.register_comm_hook(state, timed)
    for g in gradients:
        model.zero_grad()
        model(torch.eye(columns)).backward(torch.from_numpy(g.T.copy()))
    found = model.module.weight.grad.numpy().copy()
    dist.destroy_process_group()
    return took, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 512), ("columns", 512), ("rank", 2), ("rounds", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    gradients = np.random.default_rng(0).normal(size=(given.rounds, given.rows, given.columns)).astype(np.float32)
    print(json.dumps({"environment": environment(), "torch": torch.__version__, **vars(given)}))
    contenders: dict[str, Callable[[np.ndarray, int], tuple[list[float], np.ndarray]]]
    contenders = {"tierline powersgd": ours, "PyTorch powerSGD_hook": pytorchs}
    for name, run in contenders.items():
        took, mean = run(gradients, given.rank)
        warm = [1e3 * seconds for seconds in took[len(took) // 3 :]]
        g = gradients[-1].astype(np.float64)
        error = float(((mean - g) ** 2).sum() / (g**2).sum())
        line = {
            "median_ms": round(statistics.median(warm), 2),
            "best_ms": round(min(warm), 2),
            "error": round(error, 3),
        }
        print(json.dumps({"implementation": name, **line}), flush=True)


if __name__ == "__main__":
    main()
