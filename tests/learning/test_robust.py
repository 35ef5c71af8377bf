"""Strategies that withstand bad workers: identities, formulas, attacks, and what is refused by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import pytest
from quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Fitted, Job
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import World
from tierline.learning.effects import Effects, Exchange
from tierline.learning.rule import NodeInfo, Rule, Turn
from tierline.learning.strategy.krum import scores

NUM, DIM, LR = 9, 8, 0.1
RNG = np.random.default_rng(5)
X0 = RNG.normal(size=DIM).astype(np.float32)
A = RNG.uniform(0.5, 1.5, (NUM, DIM))
B = RNG.normal(size=DIM) + 0.3 * RNG.normal(size=(NUM, DIM))
"""Unlike workers, whose optima lie around a common place."""
IDS = worker_ids(NUM)
BAD = IDS[-2:]
GOOD = list(range(NUM - len(BAD)))
# Baruch et al., "A Little Is Enough": as far as the attackers and so many good ones still look like a majority.
Z = NormalDist().inv_cdf((len(GOOD) - (NUM // 2 + 1 - len(BAD))) / len(GOOD))
ROBUST: dict[str, dict[str, object]] = {
    "median": {},
    "trimmed_mean": {"trim": 2},
    "krum": {"num_attackers": 2},
    "geometric_median": {},
    "centered_clipping": {"radius": 0.3},
}


class Attacker(Quadratic):
    """Trains like the good ones, knows what all of them send, and answers something else."""

    def __init__(self, i: int, kind: str) -> None:
        super().__init__(A[i], B[i])
        self.good = [Quadratic(A[j], B[j]) for j in GOOD]
        self.kind = kind

    def fit(self, start: Params, job: Job) -> Fitted:
        mine = super().fit(start, job)
        each = np.stack([q.fit(start, job).values.flat - start.flat for q in self.good])
        lies = {
            "sign flip": -4.0 * each.mean(0),
            "large values": np.full(DIM, 1e6),
            "a little is enough": each.mean(0) - Z * each.std(0),
            "inner product": -0.5 * each.mean(0),
        }
        lie = Params(start.layout, (start.flat + lies[self.kind]).astype(np.float32))
        return Fitted(lie, mine.loss, mine.num_samples, mine.num_steps)


class Spoiled:
    """A worker whose messages are changed on their way out."""

    def __init__(self, rule: Rule, changes: Mapping[str, object]) -> None:
        self._rule, self._changes = rule, changes
        self.traits, self.start, self.resync = rule.traits, rule.start, rule.resync
        self.state, self.load = rule.state, rule.load

    @property
    def x(self) -> Params:
        return self._rule.x

    def turn(self, t: Turn) -> Effects[None]:
        running, answer = self._rule.turn(t), None
        while True:
            try:
                effect = running.send(answer)
            except StopIteration:
                return
            if isinstance(effect, Exchange) and effect.out:
                out = {to: {**message, **self._changes} for to, message in effect.out.items()}
                effect = Exchange(effect.tag, out, effect.expect)  # type: ignore[arg-type]
            answer = yield effect


def run(
    name: str,
    rounds: int,
    *,
    attack: str | None = None,
    spoiled: Mapping[int, Mapping[str, object]] | None = None,
    sizes: list[int] | None = None,
    job: Job | None = None,
    lr: float = LR,
    noise: float = 0.0,
    world: World | None = None,
    **options: object,
) -> tuple[np.ndarray, Memory]:
    """The server's model after so many turns."""
    rules = federation(name, NUM, options)
    for i, changes in (spoiled or {}).items():
        rules[IDS[i]] = Spoiled(rules[IDS[i]], changes)
    trainers: dict[NodeId, Quadratic] = {}
    for i, me in enumerate(IDS):
        num_samples = sizes[i] if sizes else 1
        honest = Quadratic(A[i], B[i], num_samples=num_samples, noise=noise)
        trainers[me] = Attacker(i, attack) if attack and me in BAD else honest
    x = Params.from_arrays({"w": X0[:6].reshape(2, 3), "b": X0[6:]})
    star = catalog.make("topology", "star")
    driver = Memory(rules, trainers, star, x, lr=lambda round: lr, job=job, world=world)
    driver.run(rounds)
    return rules[SERVER].x.flat, driver


def server(name: str, **options: object) -> Rule:
    made: Rule = catalog.make("strategy", name, "Server", **options)
    made.start(Params.from_arrays({"x": np.zeros(DIM)}), NodeInfo(SERVER, (SERVER,), frozenset(), frozenset()))
    return made


def combine(name: str, rows: np.ndarray, counts: np.ndarray | None = None, **options: object) -> np.ndarray:
    made = server(name, **options)
    found: np.ndarray = made.combine(  # type: ignore[attr-defined]
        rows.astype(np.float32), np.ones(len(rows)) if counts is None else counts
    )
    return found


def optimum() -> np.ndarray:
    """Of the good ones."""
    found: np.ndarray = (A[GOOD] * B[GOOD]).sum(0) / A[GOOD].sum(0)
    return found


def error(x: np.ndarray) -> float:
    return float(np.linalg.norm(x - optimum()))


ROWS = RNG.normal(size=(7, DIM)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trimmed_mean", {"trim": 0}),
        ("centered_clipping", {"radius": float("inf")}),
        ("krum", {"num_attackers": 0, "num_chosen": 7}),
        ("geometric_median", {"nu": 1e9}),
    ],
)
def test_a_limit_of_each_rule_is_the_mean(name: str, options: dict[str, object]) -> None:
    assert np.abs(combine(name, ROWS, **options) - ROWS.mean(0, dtype=np.float64)).max() < 1e-7
    if name != "krum":
        one, mean = run(name, 5, noise=0.1, **options)[0], run("fedavg", 5, noise=0.1)[0]
        assert np.abs(one - mean).max() < 1e-6


@pytest.mark.parametrize(
    ("name", "options"), [("median", {}), ("trimmed_mean", {"trim": 0}), ("geometric_median", {"num_steps": 1})]
)
def test_the_rule_of_one_update_is_that_update(name: str, options: dict[str, object]) -> None:
    assert np.abs(combine(name, ROWS[:1], **options) - ROWS[0]).max() < 1e-7


@pytest.mark.parametrize("num", [6, 7])
def test_median_and_trimmed_mean_are_those_of_sorted_values(num: int) -> None:
    values = np.sort(ROWS[:num].astype(np.float64), axis=0)
    middle = values[num // 2] if num % 2 else values[num // 2 - 1 : num // 2 + 1].mean(0)
    assert np.abs(combine("median", ROWS[:num]) - middle).max() < 1e-7
    assert np.abs(combine("trimmed_mean", ROWS[:num], trim=2) - values[2:-2].mean(0)).max() < 1e-7


def test_krum_takes_the_one_in_the_middle_of_most() -> None:
    # On a line: scores with n = 7, f = 2 are sums of the 3 smallest squares.
    line = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 50.0, 50.0])
    rows = np.zeros((7, DIM), np.float32)
    rows[:, 3] = line
    expected = [np.sort((np.delete(line, i) - line[i]) ** 2)[:3].sum() for i in range(7)]
    assert np.allclose(scores(rows, 2), expected) and expected[2] == min(expected)
    assert combine("krum", rows, num_attackers=2)[3] == 1.0  # 1, 2 and 3 score alike, the first counts
    rows[2, 3] = 1.9
    assert combine("krum", rows, num_attackers=2)[3] == pytest.approx(1.9)
    assert combine("krum", rows, num_attackers=2, num_chosen=3)[3] == pytest.approx((1 + 1.9 + 3) / 3)


def test_geometric_median_is_where_the_pulls_cancel() -> None:
    z = combine("geometric_median", ROWS, num_steps=500, nu=1e-6)
    gaps = ROWS - z
    assert np.abs((gaps / np.linalg.norm(gaps, axis=1, keepdims=True)).sum(0)).max() < 1e-5
    line = np.zeros((5, DIM))
    line[:, 0] = [0.0, 1.0, 2.0, 10.0, 90.0]
    assert combine("geometric_median", line, num_steps=300, nu=1e-6)[0] == pytest.approx(2.0, abs=1e-2)
    counts = np.array([1.0, 1.0, 1.0, 1.0, 9.0])
    far = combine("geometric_median", line, counts, weighted=True, num_steps=300)[0]
    assert far == pytest.approx(90 - 0.1 * 4 / 9)  # so far smoothing gives way to the other four
    # One step from 0, by hand.
    weights = 1 / np.maximum(0.1, np.linalg.norm(ROWS.astype(np.float64), axis=1))
    assert np.allclose(combine("geometric_median", ROWS, num_steps=1), weights @ ROWS / weights.sum())


def test_centered_clipping_is_its_formula_and_goes_on_from_its_last_result() -> None:
    made = server("centered_clipping", radius=0.7, num_steps=2)
    v = np.zeros(DIM)
    for rows in (ROWS, 2 * ROWS):
        for _ in range(2):
            gaps = rows.astype(np.float64) - v
            v = v + (gaps * np.minimum(1, 0.7 / np.linalg.norm(gaps, axis=1, keepdims=True))).mean(0)
        found = made.combine(rows, np.ones(7))  # type: ignore[attr-defined]
        assert np.allclose(found, v, atol=1e-6)


def test_workers_send_the_momentum_of_their_updates() -> None:
    x, m = X0.astype(np.float64), np.zeros((NUM, DIM))
    for _ in range(6):
        y = np.broadcast_to(x, (NUM, DIM))
        for _ in range(2):
            y = y - LR * A * (y - B)
        m = 0.8 * m + 0.2 * (y - x)
        x = x + m.mean(0)
    assert np.abs(run("trimmed_mean", 6, trim=0, beta=0.8)[0] - x).max() < 1e-5


@pytest.mark.parametrize("attack", ["sign flip", "large values"])
@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_converge_where_the_mean_does_not(name: str, attack: str) -> None:
    x, _ = run(name, 20, attack=attack, **ROBUST[name])
    mean, _ = run("fedavg", 20, attack=attack)
    assert error(x) < 0.2 * error(X0) and error(mean) > 1.5 * error(X0)


@pytest.mark.parametrize("attack", ["a little is enough", "inner product"])
@pytest.mark.parametrize("name", ROBUST)
def test_hidden_attacks_only_bias_robust_rules(name: str, attack: str) -> None:
    assert error(run(name, 20, attack=attack, **ROBUST[name])[0]) < 0.25 * error(X0)


def test_buckets_are_means_of_random_groups() -> None:
    one = run("median", 3, bucket=3)[0]
    assert not np.array_equal(one, run("median", 3)[0])
    assert np.array_equal(one, run("median", 3, bucket=3)[0])
    whole = run("median", 3, bucket=NUM)[0]
    assert np.abs(whole - run("trimmed_mean", 3, trim=0)[0]).max() < 1e-6
    uneven, _ = run("krum", 20, bucket=2, num_attackers=1)  # five buckets, the last of one
    assert np.isfinite(uneven).all()


BAD_MESSAGES: dict[str, tuple[Mapping[str, object], str]] = {
    "NaN": ({"d": np.full(DIM, np.nan, np.float32)}, "'w' holds values that are not finite"),
    "infinite": ({"d": np.array([0.0] * 7 + [np.inf], np.float32)}, "'b' holds values that are not finite"),
    "huge": ({"d": np.full(DIM, 1e37, np.float32)}, "above 2^100"),
    "size": ({"d": np.zeros(3, np.float32)}, "'d' is float32[3], expected float32[8]"),
    "dtype": ({"d": np.zeros(DIM)}, "'d' is float64[8]"),
    "missing": ({"d": 1.0}, "no array 'd'"),
    "count": ({"n": 50}, "claims 50 samples; max_samples = 9"),
    "no count": ({"n": float("nan")}, "n = nan is no number of samples"),
    "negative": ({"n": -3}, "n = -3.0 is no number of samples"),
}


@pytest.mark.parametrize("kind", BAD_MESSAGES)
@pytest.mark.parametrize("name", ["trimmed_mean", "fedavg", "fedprox", "fedopt", "sync_sgd"])
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(
    name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes, message = BAD_MESSAGES[kind]
    if name != "trimmed_mean":
        changes = {"x" if key == "d" else key: value for key, value in changes.items()}
        message = message.replace("'d'", "'x'")
    caplog.set_level(logging.WARNING, "tierline.learning")
    options = {"trim": 0} if name == "trimmed_mean" else {}
    x, _ = run(name, 1, spoiled={4: changes}, max_samples=9, **options)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("round 0: refused the update of worker-4: ") and message in line
    # What is left is what a run without that worker gives: it is too late for the deadline there.
    late = World(compute_s=1e-3, compute_of={IDS[4]: 1e3})
    assert np.array_equal(x, run(name, 1, max_samples=9, quorum=NUM - 1, world=late, **options)[0])


@pytest.mark.parametrize("name", ["fedavg", "krum", "fedopt", "sync_sgd"])
def test_where_all_are_refused_the_model_stays(name: str, caplog: pytest.LogCaptureFixture) -> None:
    x, _ = run(name, 2, spoiled={i: {"n": 100} for i in range(NUM)}, max_samples=9)
    assert np.array_equal(x, X0)
    assert sum("refused the update" in record.getMessage() for record in caplog.records) == 2 * NUM
    if name == "krum":
        assert "round 1: krum has 0 usable updates of the 5 it needs; the model stays" in caplog.messages


def test_seeing_every_message_changes_no_bit_of_fedavg() -> None:
    sizes = list(range(1, NUM + 1))
    for name in ("fedavg", "fedopt", "sync_sgd"):
        one, driver = run(name, 4, sizes=sizes, noise=0.2, max_samples=NUM)
        other, sums = run(name, 4, sizes=sizes, noise=0.2)
        assert np.array_equal(one, other)
        assert driver.counts.num_messages == sums.counts.num_messages


def test_a_round_goes_on_without_the_slow() -> None:
    slow = World(compute_s=0.1, compute_of={IDS[3]: 50.0})
    assert np.array_equal(
        run("median", 1, world=slow, within_s=1.0)[0], run("median", 1, world=slow, quorum=NUM - 1)[0]
    )
    assert not np.array_equal(run("median", 1, world=slow, within_s=1.0)[0], run("median", 1)[0])


def sgd(rounds: int, **options: object) -> np.ndarray:
    return run("sync_sgd", rounds, **options)[0]


def test_sync_sgd_is_gradient_descent_on_the_pooled_samples() -> None:
    sizes = list(range(1, NUM + 1))
    weights = np.array(sizes) / sum(sizes)
    x = X0.astype(np.float64)
    for _ in range(10):
        x = x - LR * weights @ (A * (x - B))
    assert np.abs(sgd(10, sizes=sizes) - x).max() < 1e-6
    for compress in ("topk", "error_feedback+topk"):
        assert np.abs(sgd(10, sizes=sizes, compress=compress, options={"share": 1.0}) - x).max() < 1e-6


def test_sync_sgd_with_feedback_converges_where_the_bare_compressor_stalls() -> None:
    pooled = (A * B).sum(0) / A.sum(0)

    def gap(compress: str) -> float:
        return float(np.abs(sgd(40, compress=compress) - pooled).max())

    assert gap("error_feedback+topk") < 0.05 < 0.1 < gap("topk")  # one value of each tensor


def test_sync_sgd_sends_what_the_compressor_makes_and_draws_by_the_workers_key() -> None:
    assert np.array_equal(sgd(5, compress="qsgd"), sgd(5, compress="qsgd"))
    assert not np.array_equal(sgd(5, compress="qsgd"), sgd(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"g/w": np.zeros(3, np.uint8)}, "ends"),
        ({"g/b": 1.0}, "expected an array of bytes"),
        ({"n": 10}, "claims 10 samples; max_samples = 9"),
    ],
)
def test_sync_sgd_refuses_what_no_compressor_made(
    changes: Mapping[str, object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    x = sgd(1, compress="topk", spoiled={2: changes}, max_samples=9)
    (line,) = caplog.messages
    assert line.startswith("round 0: refused the update of worker-2: ") and message in line
    late = World(compute_s=1e-3, compute_of={IDS[2]: 1e3})
    assert np.array_equal(x, sgd(1, compress="topk", world=late, quorum=NUM - 1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("median", {"bucket": 0}, "median: bucket = 0 must be at least 1"),
        ("median", {"max_samples": 0}, "max_samples = 0 must be at least 1"),
        ("median", {"beta": 1.0}, r"beta = 1\.0 must be at least 0 and below 1"),
        ("trimmed_mean", {"trim": -1}, "trimmed_mean: trim = -1"),
        ("krum", {"num_chosen": 0}, "krum: num_attackers must be at least 0"),
        ("geometric_median", {"nu": 0.0}, "nu above 0"),
        ("geometric_median", {"weighted": True, "bucket": 2}, "buckets are equally weighted"),
        ("centered_clipping", {"radius": 0.0}, "radius above 0"),
        ("sync_sgd", {"compress": "topkk"}, "no such compress: 'topkk'; nearest is \"topk\""),
        ("sync_sgd", {"compress": "indirect"}, "needs more than a gradient"),
        ("sync_sgd", {"options": {"share": 1.0}}, "name one with compress"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        federation(name, NUM, options)


def test_too_few_workers_are_an_error_not_a_silence() -> None:
    with pytest.raises(NodeFailed, match="krum: 9 updates in buckets of 1 are fewer than 11"):
        run("krum", 1, num_attackers=4)
    with pytest.raises(NodeFailed, match="trimmed_mean: 3 updates in buckets of 1 are fewer than 5"):
        run("trimmed_mean", 1, trim=2, share=1 / 3)
