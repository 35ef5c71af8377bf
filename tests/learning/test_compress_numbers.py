"""What the authors of compressors claim in numbers, at small scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.rng import Key
from tierline.learning.compress import _lloyd
from tierline.learning.compressor import Compressor, Factors


def key(i: int = 0) -> Key:
    return Key("run", i, "a", "b", "w")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(name: str, **options: object) -> Compressor:
    made: Compressor = catalog.make("compress", name, **options)
    return made


def errors(made: Compressor, x: np.ndarray, num: int, side: np.ndarray | None = None) -> np.ndarray:
    """What the receiver has too much, for `num` keys: (num, d), float64."""
    rows = [made.expand(key(i), made.compress(key(i), x), side) for i in range(num)]
    return np.stack(rows).reshape(num, -1).astype(np.float64) - x.reshape(-1)


def relative(made: Compressor, x: np.ndarray, num: int) -> float:
    """Squared error over squared size."""
    return float((errors(made, x, num) ** 2).sum(axis=1).mean() / (x.astype(np.float64) ** 2).sum())


# Subtractive dither


def with_end(x: np.ndarray) -> np.ndarray:
    """The largest magnitude set to 1, so that the scale is known."""
    x = np.clip(x, -1, 1).astype(np.float32)
    x[0] = 1
    return x


INPUTS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "uniform": lambda rng: rng.uniform(-1, 1, 2000),
    "normal": lambda rng: rng.normal(size=2000) * 0.25,
    "constant": lambda rng: np.full(2000, 0.3),
    "sparse": lambda rng: rng.normal(size=2000) * (rng.random(2000) < 0.1),
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", INPUTS)
def test_dithered_error_is_uniform_whatever_is_coded(name: str, steps: int) -> None:
    x = with_end(INPUTS[name](np.random.default_rng(1)))
    error = errors(make("dithered", steps=steps), x, 60)
    s = 1 / steps
    assert np.abs(error).max() <= s / 2 * 1.0001
    assert (error**2).mean() == pytest.approx(s * s / 12, rel=0.015)
    assert abs(error.mean()) < 0.002 * s
    if x.std() > 0.1:
        given = np.tile(x, len(error))
        assert abs(np.corrcoef(given, error.ravel())[0, 1]) < 0.01
        assert abs(np.corrcoef(np.abs(given), (error**2).ravel())[0, 1]) < 0.01


def test_half_of_qsgds_error_on_uniform_data() -> None:
    x = with_end(np.random.default_rng(1).uniform(-1, 1, 4000))
    dithered = float((errors(make("dithered"), x, 40) ** 2).mean())
    half = float((errors(make("qsgd", steps=1, norm="max"), x, 40) ** 2).mean())
    assert dithered == pytest.approx(1 / 12, rel=0.02)
    assert half == pytest.approx(1 / 6, rel=0.02)


def test_terngrad_is_qsgd_with_one_level_of_the_largest_magnitude() -> None:
    x = normal(500)
    ours = make("terngrad").expand(key(), make("terngrad").compress(key(), x))
    made = make("qsgd", steps=1, norm="max")
    assert np.array_equal(ours, made.expand(key(), made.compress(key(), x)))


# Nested dither


def nested_error(noise: float, step: float, ratio: int) -> float:
    """E (e - ratio step m)^2 over step^2 / 12: e uniform over a step, m = round((n + e) / (ratio step)) the coarse
    cells by which a value is missed, n normal with deviation `noise`."""
    total, wide, grid = 0.0, ratio * step, 400
    for e in (((np.arange(grid) + 0.5) / grid - 0.5) * step).tolist():
        for m in range(-4, 5):
            low, high = (((m + side) * wide - e) / noise / math.sqrt(2) for side in (-0.5, 0.5))
            total += (math.erf(high) - math.erf(low)) / 2 * (e - wide * m) ** 2
    return total / grid / (step**2 / 12)


@pytest.mark.parametrize(("noise", "ratio"), [(0.05, 1.0), (0.2, 1.0), (0.5, 1.05), (1.0, 5.6)])
def test_nested_is_as_good_as_plain_until_side_information_fails(noise: float, ratio: float) -> None:
    x = np.clip(normal(100_000), -4.2, 4.2)
    x[0] = 4.2
    y = x + np.float32(noise) * normal(100_000, seed=1)
    nested = float((errors(make("nested_dithered", fine=3, coarse=1), x, 3, y) ** 2).mean())
    plain = float((errors(make("dithered", steps=3), x, 3) ** 2).mean())
    assert plain == pytest.approx(1.4**2 / 12, rel=0.01)
    assert nested / plain == pytest.approx(nested_error(noise, 1.4, 3), rel=0.03)
    assert nested / plain == pytest.approx(ratio, rel=0.05)


def test_what_is_near_enough_is_decoded_as_the_fine_levels_are_and_the_rest_misses_by_whole_cells() -> None:
    x = normal(4000)
    step = float(np.abs(x).max()) / 9
    y = x + np.random.default_rng(2).uniform(-3 * step, 3 * step, 4000).astype(np.float32)
    error = errors(make("nested_dithered", fine=9, coarse=3), x, 5, y)  # rho = 3
    near = np.abs(x - y) < step  # (rho - 1) s / 2
    assert np.abs(error[:, near]).max() < step / 2 * 1.0001
    cells = error / (3 * step)
    off = np.abs(cells - np.rint(cells))
    assert off.max() < 1 / 6 + 1e-4  # half a step of the fine scale, around multiples of the coarse one
    assert np.abs(np.rint(cells)).max() == 1 and not np.rint(cells)[:, near].any()


@pytest.mark.parametrize("gain", [1.0, 0.9, 0.7])
def test_error_of_nested_dither_with_a_gain(gain: float) -> None:
    x = normal(20_000)
    y = x + np.float32(0.2) * normal(20_000, seed=1)
    step = float(np.abs(x).max()) / 3
    expected = gain**2 * step**2 / 12 + (1 - gain**2) ** 2 * 0.04
    error = errors(make("nested_dithered", gain=gain), x, 5, y)
    assert float((error**2).mean()) == pytest.approx(expected, rel=0.03)


def test_bits_of_the_papers_network_and_of_half_nested_workers() -> None:
    x = normal(266_610)
    bits = {
        name: 8 * made.compress(key(), x).num_bytes
        for name, made in {
            "one": make("dithered"),
            "nested": make("nested_dithered"),
            "three": make("dithered", steps=3),
        }.items()
    }
    assert bits["one"] == pytest.approx(422_600, rel=0.02)
    assert bits["nested"] == pytest.approx(422_600, rel=0.02)
    assert bits["three"] == pytest.approx(748_500, rel=0.02)
    assert (bits["three"] + bits["nested"]) / 2 / x.size == pytest.approx(2.196, rel=0.02)


def test_a_server_decodes_nested_workers_with_the_mean_of_the_plain_ones() -> None:
    common = normal(5000)
    workers = [common + np.float32(0.2) * normal(5000, seed=10 + i) for i in range(8)]
    plain, nested = make("dithered", steps=3), make("nested_dithered", fine=3, coarse=1)
    mean, expected = np.zeros(5000), np.zeros(5000)
    for i, x in enumerate(workers):
        made = plain if i < 4 else nested
        y = made.expand(key(i), made.compress(key(i), x), mean.astype(np.float32))
        mean += (y - mean) / (i + 1)
        error = plain.expand(key(100 + i), plain.compress(key(100 + i), x)) - x
        expected += ((x + error) - expected) / (i + 1)
    truth = np.mean(workers, axis=0)
    assert ((mean - truth) ** 2).mean() == pytest.approx(((expected - truth) ** 2).mean(), rel=0.05)


# Quantised compressive sampling


@pytest.mark.parametrize(
    ("k", "steps", "found", "bound"),
    [(256, 1, 0.78, 1.39), (128, 1, 2.33, 3.45), (64, 1, 5.36, 7.23), (64, 3, 3.26, 3.47)],
)
def test_error_of_compressive_sampling_under_its_bound(k: int, steps: int, found: float, bound: float) -> None:
    made = make("compressive_sampling", share=k / 256, steps=steps)
    x = normal(20, 256)
    assert made.expected_error(x) / (x.astype(np.float64) ** 2).sum() == pytest.approx(bound, rel=0.005)
    assert relative(made, x, 25) == pytest.approx(found, rel=0.04)
    shrunk = make("compressive_sampling", share=k / 256, steps=steps, decoder="mmse")
    assert relative(shrunk, x, 10) < bound / (1 + bound) < 1


@pytest.mark.parametrize(
    ("gain", "gamma", "k"), [(14, 0.37, None), (20.2, 0.95, None), (32, 2.02, 110), (100, 7.99, 35)]
)
def test_two_steps_are_best_at_every_gain(gain: float, gamma: float, k: int | None) -> None:
    x = normal(256)
    size = float((x.astype(np.float64) ** 2).sum())
    best = {}
    for steps in range(1, 9):
        most = min(256, round(32 * 256 / (gain * math.log2(2 * steps + 1))))
        made = make("compressive_sampling", share=most / 256, steps=steps)
        best[steps] = made.expected_error(x) / size, most
    assert min(best, key=lambda steps: best[steps]) == 2
    assert best[2][0] == pytest.approx(gamma, abs=0.02)
    assert k is None or best[2][1] == k
    if gain == 20.2:
        assert make("qsgd", steps=1).expected_error(x) / size == pytest.approx(16)


def test_compressive_sampling_is_right_in_the_mean() -> None:
    x = normal(64)
    error = errors(make("compressive_sampling", block=64, share=0.25, steps=2), x, 1600)
    deviation = error.mean(axis=0) / (error.std(axis=0) / 40)
    assert np.abs(deviation).max() < 4 and (deviation**2).mean() == pytest.approx(1, abs=0.5)


# Error feedback and momentum


def test_feedback_of_an_unbiased_compressor_needs_a_small_weight() -> None:
    def memory(beta: float) -> float:
        options = {"block": 64, "share": 0.25, "steps": 1}
        made = make("error_feedback", inner="compressive_sampling", options=options, beta=beta)
        for i in range(60):
            made.compress(key(i), normal(64, seed=i))
        (kept,) = made.state().values()
        return float(np.linalg.norm(kept))

    gamma = relative(make("compressive_sampling", block=64, share=0.25, steps=1), normal(64), 200)
    assert gamma > 3
    assert memory(1 / (1 + gamma)) < 60
    assert memory(1.4 / (1 + gamma)) < 80
    assert memory(2.5 / (1 + gamma)) > 300  # above 2 / (1 + gamma) it grows without end
    assert memory(3.5 / (1 + gamma)) > 1e5


@pytest.mark.parametrize("name", ["sign", "one_bit"])
def test_descent_goes_on_with_feedback_where_one_bit_stalls(name: str) -> None:
    # Both gradients have the signs and the two centres of (1, 1, -1, -1): nothing else is ever sent, though the
    # loss also depends on what is orthogonal to it.
    a = np.array([[3, 1, -1, -3], [1, 3, -3, -1]], np.float32)
    across = np.array([1, -1, 1, -1], np.float32)

    def descend(made: Compressor) -> float:
        x = across.copy()
        for i in range(300):
            g = a[i % 2] * (a[i % 2] @ x)
            x = x - np.float32(0.02) * made.expand(key(i), made.compress(key(i), g))
        return float(abs(x @ across))

    assert descend(make(name)) == pytest.approx(4, abs=1e-3)
    assert descend(make("error_feedback", inner=name)) < 0.02


def test_descent_goes_on_with_feedback_where_the_largest_values_cancel() -> None:
    def descend(workers: list[Compressor]) -> float:
        x = np.float32(1)
        for i in range(300):
            updates = [np.array([side, x], np.float32) for side in (5, -5)]
            sent = [w.expand(key(i), w.compress(key(i), u)) for w, u in zip(workers, updates, strict=True)]
            x -= np.float32(0.05) * np.mean(sent, axis=0)[1]
        return abs(float(x))

    assert descend([make("topk", share=0.5) for _ in range(2)]) == 1
    assert descend([make("error_feedback", inner="topk", options={"share": 0.5}) for _ in range(2)]) < 0.3


def test_dgc_is_its_formula_and_its_share_falls_in_stages() -> None:
    made = make("dgc", share=0.1, momentum=0.9, clip=2.0, num_workers=4)
    u, v = np.zeros(50), np.zeros(50)
    for i in range(20):
        g = normal(50, seed=i)
        y = made.expand(key(i), made.compress(key(i), g))
        u = 0.9 * u + g * min(1.0, 1.0 / np.linalg.norm(g))
        v = v + u
        largest = np.argsort(-np.abs(v))[:5]
        expected = np.zeros(50)
        expected[largest] = v[largest]
        u[largest] = v[largest] = 0
        assert np.abs(y - expected).max() < 1e-5
    made = make("dgc", share=0.001, warmup_stages=5, stage_rounds=2)
    x = normal(100_000)
    shares = [np.count_nonzero(made.expand(key(i), made.compress(key(i), x))) / x.size for i in range(0, 14, 2)]
    assert shares == pytest.approx([0.251, 0.063, 0.0158, 0.00398, 0.001, 0.001, 0.001], rel=0.01)


# Factors of a gradient


def test_centres_are_those_of_the_published_table() -> None:
    assert _lloyd.centres("sn", 2)[1] == pytest.approx(0.7979, abs=1e-4)
    assert _lloyd.centres("sn", 4)[2:] == pytest.approx((0.4528, 1.510), abs=5e-4)
    assert _lloyd.centres("sn", 8)[4:] == pytest.approx((0.2451, 0.7560, 1.344, 2.152), abs=5e-4)
    assert _lloyd.centres("sfn", 2) == _lloyd.centres("sn", 4)[2:]


@pytest.mark.parametrize(("samples", "gain"), [(8, 923), (32, 231), (128, 58), (512, 14)])
def test_gain_of_one_bit_factors(samples: int, gain: float) -> None:
    factors = Factors(normal(samples, 1000), normal(samples, 300, seed=1))
    made = make("indirect", form="naive", model_x="u", model_d="u", levels=2)
    assert 4 * 300_000 / made.compress(key(), factors).num_bytes == pytest.approx(gain, rel=0.04)


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_least_squares_centres_lower_the_error(levels: int) -> None:
    factors = Factors(np.maximum(normal(24, 60), 0), normal(24, 40, seed=1) ** 3)
    g = factors.product().astype(np.float64)

    def error(form: str, num_passes: int = 1) -> tuple[float, float]:
        made = make("indirect", form=form, levels=levels, num_passes=num_passes)
        off = made.expand(key(), made.compress(key(), factors)) - g
        return float((off**2).sum()), abs(float(off.sum()))

    naive, once, twice, equal_sum = error("naive"), error("mv"), error("mv", 2), error("mvu")
    assert twice[0] <= once[0] * 1.000001 < naive[0]
    assert once[0] <= equal_sum[0] * 1.000001 < 1.2 * naive[0]
    assert equal_sum[1] < 1e-3 * np.abs(g).sum() / 100


def test_dithered_factors_are_right_in_the_mean() -> None:
    factors = Factors(np.maximum(normal(6, 8), 0), normal(6, 5, seed=1))
    made = make("indirect", form="dithered", levels=3)
    g = factors.product()
    rows = np.stack([made.expand(key(i), made.compress(key(i), factors)) for i in range(900)])
    deviation = (rows.mean(axis=0) - g) / (rows.std(axis=0) / 30)
    assert np.abs(deviation).max() < 4
    expected = made.expected_error(factors)
    assert ((rows - g) ** 2).sum(axis=(1, 2)).mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_even_rounding_costs_a_twelfth_of_a_step_squared(bits: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    made = catalog.make("compress", "affine", bits=bits)
    y = made.expand(key(), made.compress(key(), x))
    step = (float(x.max()) - float(x.min())) / (2**bits - 1)
    assert np.mean((y - x) ** 2.0) == pytest.approx(step**2 / 12, rel=0.02)
