"""The driver in memory where nodes differ: sums that only some want, streams without rounds, a server's turns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.support.scripts import A, B, C, D, X

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import NodeFailed
from tierline.core.types import Arrays, NodeId
from tierline.learning.compute import Backprop, Fitted, Gradient, Job
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.effects import (
    Effects,
    backward,
    collect,
    contribute,
    exchange,
    fit,
    forward,
    gradient,
    hear,
    number,
    outputs,
    params,
    tell,
)
from tierline.learning.errors import Deadlock, RuleError
from tierline.learning.half import Half
from tierline.learning.rule import Traits, Turn


class Echo:
    """A Trainer that shows what it was asked."""

    def gradient(self, at: Params, batch: Arrays, terms: object = ()) -> Gradient:
        return Gradient(at, float(len(batch)), 1)

    def outputs(self, at: Params, batch: Arrays, names: tuple[str, ...]) -> Arrays:
        return dict.fromkeys(names, at.flat)

    def fit(self, start: Params, job: Job) -> Fitted:
        return Fitted(start + start, job.lr, 3, job.num_steps or 1)

    def forward(self, at: Params, token: int, inputs: Arrays) -> Arrays:
        return {"features": at.flat * token}

    def backward(self, token: int, gradients: Arrays) -> Backprop:
        return Backprop(X, {"inputs": gradients["features"] * token})


class Script(Half):
    """Runs a generator function as its turn, and notes things down."""

    traits = Traits(tolerates_loss=True, per_edge_state=False, conserves=None, directed=True)
    kept = ("x",)

    def __init__(self, body: Callable[[Script, Turn], Effects[None]]) -> None:
        self.body = body
        self.seen: list[object] = []

    def turn(self, t: Turn) -> Effects[None]:
        yield from self.body(self, t)


Body = Callable[[Script, Turn], Effects[None]]


def drive(
    body: Body, nodes: str = "abcd", *, topology: str = "star", world: World | None = None, job: Job | None = None
) -> tuple[Memory, dict[NodeId, Script]]:
    rules = {NodeId(name): Script(body) for name in nodes}
    trainers = {me: Echo() for me in rules if me != A}
    graph = catalog.make("topology", topology)
    return Memory(rules, trainers, graph, X, lr=lambda round: 0.1, world=world, job=job), rules  # type: ignore[arg-type]


def test_every_verb_reaches_the_trainer_and_a_fit_takes_the_time_of_its_steps() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == B:
            g = yield from gradient(rule.x, {"inputs": X.flat})
            h = yield from outputs(rule.x, {}, "features", "logits")
            fitted = yield from fit(rule.x, t.job)
            up = yield from forward(rule.x, 7, {})
            down = yield from backward(7, up)
            rule.seen += [g.loss, sorted(h), fitted.loss, fitted.num_steps, up["features"][1], down.inputs["inputs"][1]]

    seen: list[tuple[NodeId, int, str]] = []
    rules = {me: Script(body) for me in (A, B)}
    driver = Memory(
        rules,  # type: ignore[arg-type]
        {B: Echo()},
        catalog.make("topology", "star"),
        X,
        lr=lambda round: 0.25,
        world=World(compute_s=0.5),
        job=Job(num_steps=6),
        watch=lambda me, round, answer: seen.append((me, round, type(answer).__name__)),
    )
    driver.run(1)
    assert rules[B].seen == [1.0, ["features", "logits"], 0.25, 6, 14.0, 98.0]
    assert driver.time_s == 0.5 * (4 + 6)
    assert seen == [(B, 0, name) for name in ("Gradient", "dict", "Fitted", "dict", "Backprop")]


def test_a_turns_job_has_its_own_lr_and_key() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        rule.seen.append((t.job.lr, t.job.epochs, t.job.key))
        yield from ()

    driver, rules = drive(body, job=Job(epochs=5, lr=9.0))
    driver.run(2)
    (lr, epochs, first), (_, _, second) = rules[B].seen  # type: ignore[misc]
    assert (lr, epochs) == (0.1, 5)
    assert len({first, second, rules[C].seen[0][2]}) == 3  # type: ignore[index]


def test_a_node_without_a_trainer_cannot_compute() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        yield from fit(rule.x, t.job)

    driver, _ = drive(body)
    with pytest.raises(RuleError, match="a, turn 0: asked for a Fit, but this node has no Trainer"):
        driver.run(1)


def summed(*, quorum: int | None = None, within_s: float | None = None) -> Body:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == t.server:
            got = yield from collect("s", rule.x, t.workers, [t.server], quorum=quorum, within_s=within_s)
            rule.seen.append((got.members, got.sum.flat.tolist()))
        else:
            yield from contribute("s", rule.x, t.workers, [t.server], weight=2.0)
            rule.seen.append("on")

    return body


def test_a_sum_goes_to_who_wants_it_and_nobody_else_waits() -> None:
    driver, rules = drive(summed(), world=World(link=LinkSpec(0.25)))
    driver.run(2)
    assert rules[A].seen == [((B, C, D), (6 * X.flat).tolist())] * 2
    assert rules[B].seen == ["on", "on"]
    assert driver.time_s == 0.25  # the workers send both turns' parts at once; the server is where they meet
    assert (driver.counts.num_messages, driver.counts.num_bytes) == (6, 6 * (4 * 8 + 8))


@pytest.mark.parametrize("how", [{"quorum": 2}, {"within_s": 0.15}])
def test_who_wants_a_sum_says_when_it_closes(how: dict[str, float]) -> None:
    slow = {(B, A): LinkSpec(0.4), (C, A): LinkSpec(0.1), (D, A): LinkSpec(0.05)}
    driver, rules = drive(summed(**how), world=World(link_of=slow))  # type: ignore[arg-type]
    driver.run(1)
    assert rules[A].seen[0][0] == (C, D)  # type: ignore[index]


def test_a_deadline_counts_from_the_first_contribution_also_where_the_server_asks_late() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == t.server:
            yield from hear("late", D)
            got = yield from collect("s", rule.x, [B, C], [A], within_s=0.5)
            rule.seen.append(got.members)
        elif t.me == D:
            yield from gradient(rule.x, {})
            yield from tell("late", [A], {})
        else:
            yield from contribute("s", rule.x, [B, C], [A])

    for at, members in ((1.0, (B,)), (0.1, (B,)), (2.5, (B, C))):
        world = World(compute_s=at, link_of={(C, A): LinkSpec(2.0)})
        driver, rules = drive(body, world=world)
        driver.run(1)
        assert rules[A].seen == [members]


def test_those_who_sum_must_agree() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == A:
            yield from collect("s", rule.x, [B, C], [A])
        elif t.me in (B, C):
            yield from contribute("s", Params.from_arrays({"w": np.ones(3)}), [B, C], [A])

    driver, _ = drive(body)
    with pytest.raises(RuleError, match="b, turn 0: sum 's': members differ in group, receivers, layout"):
        driver.run(1)

    def outsider(rule: Script, t: Turn) -> Effects[None]:
        yield from contribute("s", rule.x, [B, C], [A])

    driver, _ = drive(outsider, "abcd")
    with pytest.raises(RuleError, match="d, turn 0: sum 's': the group lacks d"):
        driver.run(1)


def asynchronous(rule: Script, t: Turn) -> Effects[None]:
    """The server adds whatever comes next, and sends that worker the newest model."""
    if t.me != t.server:
        model = yield from hear("job", t.server, stream=True)
        x = params(model, "x", rule.x)
        fitted = yield from fit(x, t.job)
        yield from tell("up", [t.server], {"d": fitted.values.flat - x.flat, "v": number(model, "v")}, stream=True)
        return
    if t.round == 0:
        yield from tell("job", t.workers, {"x": rule.x.flat, "v": 0}, stream=True)
    got = yield from exchange("up", {}, t.workers, quorum=1, stream=True)
    ((worker, message),) = got.items()
    rule.x = rule.x + 0.1 * params(message, "d", rule.x)
    rule.seen.append((worker, t.round - int(number(message, "v"))))
    yield from tell("job", [worker], {"x": rule.x.flat, "v": t.round + 1}, stream=True)


UNEVEN = World(compute_s=1.0, compute_of={C: 2.5, D: 100.0}, link=LinkSpec(0.01))


def test_streams_let_the_fast_go_on_and_the_servers_turns_say_when_it_is_over() -> None:
    driver, rules = drive(asynchronous, world=UNEVEN)
    driver.run(7, of=[A])
    assert [worker for worker, _ in rules[A].seen] == [B, B, C, B, B, C, B]  # type: ignore[misc]
    assert rules[A].seen[2] == (C, 2)
    assert driver.rounds == {A: 7, B: 5, C: 2, D: 0}
    assert driver.time_s < 6
    with pytest.raises(RuleError, match="different rounds"):
        driver.states()
    with pytest.raises(RuleError, match="in the middle of a turn"):
        driver.resync()


def test_a_run_of_streams_in_pieces_is_the_same_run() -> None:
    whole, rules = drive(asynchronous, world=UNEVEN)
    whole.run(12, of=[A])
    pieces, others = drive(asynchronous, world=UNEVEN)
    for until in (1, 2, 5, 12):
        pieces.run(until, of=[A])
    assert rules[A].seen == others[A].seen and whole.time_s == pieces.time_s
    assert np.array_equal(rules[A].x.flat, others[A].x.flat)


def test_a_turn_that_fails_reads_its_stream_again() -> None:
    failed: list[int] = []

    def body(rule: Script, t: Turn) -> Effects[None]:
        yield from asynchronous(rule, t)
        if t.me == A and t.round == 3 and not failed:
            yield from exchange("nobody", {}, t.workers, within_s=50.0)  # by then its job is long done
            failed.append(t.round)
            rule.seen.pop()
            raise OSError("unplugged")

    driver, rules = drive(body, world=UNEVEN)
    with pytest.raises(NodeFailed, match="a, turn 3: OSError: unplugged"):
        driver.run(6, of=[A])
    assert driver.rounds[A] == 3
    driver.run(30, of=[A])
    reference, expected = drive(asynchronous, world=UNEVEN)
    reference.run(6, of=[A])
    assert rules[A].seen[:4] == expected[A].seen[:4]
    # What the failed turn had sent was sent again, and heard once: nobody brings two updates to one version.
    brought = [(worker, turn - late) for turn, (worker, late) in enumerate(rules[A].seen)]  # type: ignore[misc]
    assert len(brought) == 30 == len(set(brought))


def test_a_stream_that_dries_up_is_a_deadlock() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == A:
            yield from exchange("up", {}, t.workers, quorum=1, stream=True)
        elif t.me == B and t.round == 0:
            yield from tell("up", [A], {}, stream=True)
        else:
            yield from hear("job", A, stream=True)

    driver, _ = drive(body)
    with pytest.raises(Deadlock, match=r"a in turn 1 waits for 'up' from b, c, d; b in turn 1 waits for 'job' from a"):
        driver.run(2, of=[A])


def test_neighbours_may_change_with_the_round_and_have_one_direction() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        got = yield from exchange("x", {j: {"x": rule.x.flat} for j in t.peers_out}, t.peers_in)
        rule.seen.append((tuple(got), dict(t.w)))
        if t.round == 2:
            yield from tell("y", t.peers_in, {})

    driver, rules = drive(body, topology="exponential")
    driver.run(2)
    assert rules[A].seen == [((D,), {A: 0.5, D: 0.5}), ((C,), {A: 0.5, C: 0.5})]
    with pytest.raises(RuleError, match=r"turn 2: tag 'y': no edge to . in this topology"):
        driver.run(3)
