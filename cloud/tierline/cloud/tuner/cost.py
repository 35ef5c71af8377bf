"""What a choice costs: the latency model, bytes and energy, from measured times.

A sample that starts at host h runs stages 0, 1, ... and leaves behind stage s with the share p_s of samples that exit
s answers (`statistics`). With t_i the time of stage i on its node (operators between two cuts, and the exit's head),
and for every link l between two nodes on the way

    up_l   = encode_l + 8 bytes_l / up_bps_l + rtt_l / 2 + decode_l
    down_l = 8 verdict_bytes_l / down_bps_l + rtt_l / 2

the sample's latency is the sum of t_i (i <= s), of up_l and down_l over the links crossed so far, and of the handling
by each node on the way where that is known. A node that runs nothing decodes and encodes again. Then

    mean    = sum_s p_s L_s, over all hosts alike
    p50/p99 = quantiles of the mixture of the L_s; within the part of the mixture where the quantile falls, L_s is
              taken as normal with the spread of its sections' measured times (quartiles / 1.349, independent)
    bytes   = sum over links of the share of samples that cross it times payload and framing; answers do not count
    energy  = over nodes whose watts are given: active W x computing and coding time + radio W x sending time

Under a rate of r samples per second and view, nodes and links are M/G/1 queues (Pollaczek-Khinchine): a visit waits

    W = sum_i lambda_i T_i^2 / (2 (1 - rho)),    rho = sum_i lambda_i T_i,   lambda_i = r x share that reaches i

Nodes above the host batch what waits: batches are the customers (rate lambda / b, service T(b)), of the measured size b
at which waiting and service take least. Where every rho reaches 1, the choice is overloaded and its latency infinite.
Nodes never hold a sample back to fill a batch, so a Plan allows the largest measured one. Coding counts as no load.

Shape legend: G vectors of thresholds, S stages, X exits in use with the end last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tierline.cloud.tuner.goal import Watts
from tierline.cloud.tuner.ladder import END
from tierline.cloud.tuner.measured import Measured, Run
from tierline.core.types import Array, Tier

IQR_TO_SIGMA = 1 / 1.349
"""Of a normal distribution: standard deviation by distance of the quartiles."""
_INNER, _FAR = (0.001, 0.999), 3.1
"""Quantiles within one part of a mixture are held in this range; so many standard deviations are beyond it."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A feature in a codec on one link, as one sample pays for it."""

    encode_ms: float
    decode_ms: float
    num_bytes: float
    """Payload."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One value per vector of thresholds."""

    latency_mean_ms: Array
    latency_p50_ms: Array
    latency_p99_ms: Array
    bytes_per_sample: Array
    energy_j: Array


class Cost:
    """Prices choices of one shape on one hierarchy: the same stages, other thresholds, codecs and engines."""

    def __init__(
        self,
        measured: Measured,
        num_classes: int,
        rate_per_s: float,
        watts: Mapping[str, Watts],
        handling_ms: Mapping[str, float],
    ) -> None:
        """`handling_ms`: by node, what it spends on a sample beside Sections and codecs."""
        self._measured, self._num_classes = measured, num_classes
        self._rate, self._watts, self._handling_ms = rate_per_s, watts, handling_ms

    def figures(
        self,
        runs: Sequence[Run],
        codecs: Sequence[Sequence[Coded]],
        share_GX: Array,
        *,
        quantiles: bool = True,
        is_bound: bool = False,
    ) -> Figures:
        """`runs`: one per host; `codecs`: by host, the codec of every link crossed, upwards.

        Without `quantiles`, p50 and p99 are NaN. `is_bound`: quantiles that no slower codec goes
        below, for a spread may turn two parts round.
        """
        waits = _Waits(self._rate, runs, codecs, share_GX, self._measured)
        parts, weights, spreads = [], [], []
        bytes_G = np.zeros(len(share_GX))
        energy_G = np.zeros(len(share_GX))
        for run, coded in zip(runs, codecs, strict=True):
            total_G: Any = np.full(len(share_GX), self._handling_ms.get(run.path[0].id, 0.0))
            variance, back_G, crossed, leaves_at = 0.0, np.zeros(len(share_GX)), 0, 0
            reach_GS = reach(run, share_GX)
            for index, stage in enumerate(run.stages):
                here_G = reach_GS[:, index]
                while crossed < run.at[index]:
                    link, code = run.links[crossed], coded[crossed]
                    verdict = self._measured.verdict_bytes(self._num_classes, len(run.path) - 1 - crossed)
                    sent = self._measured.part_bytes(code.num_bytes)
                    up_ms = sent * 8e3 / link.up_bps + link.rtt_ms / 2
                    total_G = total_G + code.encode_ms + up_ms + code.decode_ms + waits.link(link.node)
                    total_G = total_G + self._handling_ms.get(run.path[crossed + 1].id, 0.0)
                    back_G = back_G + verdict * 8e3 / link.down_bps + link.rtt_ms / 2
                    bytes_G += here_G * sent
                    energy_G += here_G * self._energy(run.path[crossed].tier, code.encode_ms, up_ms - link.rtt_ms / 2)
                    energy_G += here_G * self._energy(run.path[crossed + 1].tier, code.decode_ms, 0.0)
                    crossed += 1
                time_G = waits.stage(run, index)
                total_G = total_G + time_G + waits.node(run.path[run.at[index]].id)
                energy_G += here_G * self._energy(run.path[run.at[index]].tier, run.ms[index], 0.0)
                variance += (run.spread_ms[index] * IQR_TO_SIGMA) ** 2
                if stage.exit:
                    parts.append(total_G + back_G)
                    weights.append(share_GX[:, leaves_at] / len(runs))
                    spreads.append(variance**0.5)
                    leaves_at += 1
        parts_GK, weights_GK = np.stack(parts, axis=1), np.stack(weights, axis=1)
        with np.errstate(invalid="ignore"):
            mean_G = np.where(weights_GK > 0, weights_GK * parts_GK, 0.0).sum(axis=1)
        sigma_K = np.array(spreads)
        if is_bound:
            parts_GK, sigma_K = parts_GK - _FAR * sigma_K.max(), np.zeros_like(sigma_K)
        p50_G, p99_G = (
            mixture_quantile(parts_GK, weights_GK, sigma_K, p) if quantiles else np.full_like(mean_G, np.nan)
            for p in (0.5, 0.99)
        )
        return Figures(mean_G, p50_G, p99_G, bytes_G / len(runs), energy_G / len(runs))

    def _energy(self, tier: Tier, active_ms: float, radio_ms: float) -> float:
        watts = self._watts.get(tier.value)
        return 0.0 if watts is None else (watts.active * active_ms + watts.radio * radio_ms) / 1e3


def reach(run: Run, share_GX: Array) -> Array:
    """Share of samples that run each stage, (G, S)."""
    after_GX = np.cumsum(share_GX[:, ::-1], axis=1)[:, ::-1]
    position, found = 0, []
    for stage in run.stages:
        found.append(after_GX[:, position])
        position += bool(stage.exit) and stage.exit != END
    return np.stack(found, axis=1)


class _Waits:
    """Queues under a rate; nothing waits at rate 0."""

    def __init__(
        self, rate: float, runs: Sequence[Run], codecs: Sequence[Sequence[Coded]], share_GX: Array, measured: Measured
    ) -> None:
        self._node: dict[str, Array] = {}
        self._link: dict[str, Array] = {}
        self._batch: dict[str, Array] = {}
        self._is_loaded = rate > 0
        if not self._is_loaded:
            return
        links: dict[str, list[tuple[Array, float]]] = {}
        nodes: dict[str, list[tuple[Array, Run, int]]] = {}
        for run, coded in zip(runs, codecs, strict=True):
            rate_GS = reach(run, share_GX) * rate * len(run.path[0].views)
            crossed = 0
            for index in range(len(run.stages)):
                while crossed < run.at[index]:
                    link = run.links[crossed]
                    busy_s = measured.part_bytes(coded[crossed].num_bytes) * 8 / link.up_bps
                    links.setdefault(link.node, []).append((rate_GS[:, index], busy_s))
                    crossed += 1
                nodes.setdefault(run.path[run.at[index]].id, []).append((rate_GS[:, index], run, index))
        for name, visits in links.items():
            self._link[name] = 1e3 * _pollaczek_khinchine(visits)
        for name, found in nodes.items():
            is_host = any(run.path[0].id == name for _, run, _ in found)
            sizes = [1] if is_host else sorted(set.intersection(*(set(run.batch_ms[index]) for _, run, index in found)))
            wait_G, batch_G = np.full(len(share_GX), np.inf), np.ones(len(share_GX))
            least_G = wait_G
            for size in sizes:
                visits = [(rate_G / size, run.batch_ms[index][size] / 1e3) for rate_G, run, index in found]
                once_G = 1e3 * _pollaczek_khinchine(visits)
                total_G = once_G + max(1e3 * service for _, service in visits)
                wait_G, batch_G = np.where(total_G < least_G, (once_G, np.full_like(once_G, size)), (wait_G, batch_G))
                least_G = np.minimum(total_G, least_G)
            self._node[name], self._batch[name] = wait_G, batch_G

    def node(self, node: str) -> Any:
        return self._node.get(node, 0.0)

    def link(self, child: str) -> Any:
        return self._link.get(child, 0.0)

    def stage(self, run: Run, index: int) -> Any:
        """Milliseconds of a stage, in the batches that its node makes."""
        if not self._is_loaded:
            return run.ms[index]
        batch_G = self._batch[run.path[run.at[index]].id]
        sizes = np.array(sorted(run.batch_ms[index]))
        times = np.array([run.batch_ms[index][int(size)] for size in sizes])
        return times[np.searchsorted(sizes, batch_G)]


def _pollaczek_khinchine(visits: Sequence[tuple[Array, float]]) -> Array:
    """Mean wait in seconds for visits of (rate per s, service s); infinite where they need all the time there is."""
    load_G = sum(rate_G * service for rate_G, service in visits)
    second_G = sum(rate_G * service**2 for rate_G, service in visits)
    wait_G: Array = np.where(load_G < 1, second_G / (2 * np.maximum(1 - load_G, 1e-12)), np.inf)
    return wait_G


def mixture_quantile(parts_GK: Array, weights_GK: Array, sigma_K: Array, p: float) -> Array:
    """Quantile of a mixture, (G,): of parts in the order of their latency, the one in which it falls, at the normal
    quantile of what is left of p there."""
    order_GK = np.argsort(parts_GK, axis=1, kind="stable")
    sorted_GK = np.take_along_axis(parts_GK, order_GK, axis=1)
    weight_GK = np.take_along_axis(weights_GK, order_GK, axis=1)
    until_GK = np.cumsum(weight_GK, axis=1)
    at_G = np.minimum((until_GK < p - 1e-12).sum(axis=1), parts_GK.shape[1] - 1)
    rows = np.arange(len(parts_GK))
    weight_G = weight_GK[rows, at_G]
    left_G = p - (until_GK[rows, at_G] - weight_G)
    inner_G = np.clip(np.divide(left_G, weight_G, out=np.full(len(rows), 0.5), where=weight_G > 0), *_INNER)
    sigma_G = sigma_K[order_GK[rows, at_G]]
    found: Array = sorted_GK[rows, at_G] + np.where(sigma_G > 0, sigma_G * normal_quantile(inner_G), 0.0)
    return found


def normal_quantile(p: Array) -> Array:
    """Inverse of the standard normal distribution function, to 4.5e-4: Abramowitz and Stegun, formula 26.2.23."""
    tail = np.sqrt(-2 * np.log(np.minimum(p, 1 - p)))
    top = 2.515517 + tail * (0.802853 + tail * 0.010328)
    bottom = 1 + tail * (1.432788 + tail * (0.189269 + tail * 0.001308))
    z = tail - top / bottom
    found: Array = np.where(p < 0.5, -z, z)
    return found
