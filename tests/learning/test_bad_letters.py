"""A raw client of the Learning service sends what no worker should; each is refused by name, and the round goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tests.support.linked import Linked
from tests.support.quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import NodeFailed
from tierline.core.link.attach import ATTACH
from tierline.core.link.content_wire import content_to_rope
from tierline.core.link.learning_wire import parcel_from_wire, parcel_to_wire
from tierline.core.link.letters import Content, Declined, Head, LetterKind, Part, Piece, Present, Settled
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Fitted, Job
from tierline.learning.driver.memory import Memory
from tierline.learning.effects import Effects, hear, tell
from tierline.learning.fixed import contribution
from tierline.learning.half import Half
from tierline.learning.rule import Traits, Turn

X = Params.from_arrays({"w": np.zeros(4, np.float32)})
WORKERS = worker_ids(3)
LIAR = WORKERS[2]
WAIT_S = 20.0


class Liar:
    """One raw stream; `answers` are the notes that came back."""

    def __init__(self, call: Any) -> None:
        self.call, self.seq = call, 0
        self.answers: asyncio.Queue[Declined | Settled] = asyncio.Queue()

    async def read(self) -> None:
        while (raw := await self.call.read()) is not grpc.aio.EOF:
            parcel = parcel_from_wire(raw)
            if isinstance(parcel, Declined | Settled):
                self.answers.put_nowait(parcel)

    async def send(
        self,
        content: Content | bytes,
        *,
        kind: LetterKind = "part",
        run: str = "job",
        round: int = 0,
        only: int | None = None,
    ) -> None:
        """A letter as one piece, or the first `only` bytes of it."""
        self.seq += 1
        body = content if isinstance(content, bytes) else b"".join(content_to_rope(content, "test"))
        head = Head(run, LIAR, SERVER, self.seq, "turn", round, "fitted", kind)
        await self.call.write(parcel_to_wire(Piece((body[:only],), head, len(body))))

    async def answer(self) -> Declined | Settled:
        return await asyncio.wait_for(self.answers.get(), WAIT_S)


@contextlib.asynccontextmanager
async def stream(run: Linked) -> AsyncIterator[Liar]:
    async with grpc.aio.insecure_channel(run.address(0)) as channel:
        liar = Liar(channel.stream_stream(ATTACH)())
        await liar.call.write(parcel_to_wire(Present((LIAR,))))
        reader = asyncio.create_task(liar.read())
        try:
            yield liar
        finally:
            liar.call.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await reader


def part(value: float = 1.0, size: int = 4, *, weight: float = 1.0, member: NodeId = LIAR) -> Content:
    own = contribution(Params.from_arrays({"w": np.full(size, value, np.float32)}), weight=weight, num_members=3)
    return Content(part=Part(own.integers, own.weight_units, own.fraction_bits, (member,), WORKERS))


def update(value: float, size: int = 4, *, num: float = 1.0) -> Content:
    return Content({"d": np.full(size, value, np.float32)}, {"n": num})


def linked(folder: Path, name: str, options: dict[str, Any]) -> Linked:
    trainers = {me: Quadratic(np.ones(4), np.full(4, 2.0)) for me in WORKERS}
    star = catalog.make("topology", "star")
    groups = [[SERVER], list(WORKERS[:2])]
    return Linked(lambda: federation(name, 3, options), trainers, star, X, folder, groups, max_weight=100.0)


Body = Callable[[Liar], Any]


def meet(run: Linked, body: Body, rounds: int = 2) -> np.ndarray:
    """The liar speaks before the honest come; then all rounds run. Returns the server's model."""

    async def go() -> None:
        async with run.office(0) as office:
            server = asyncio.create_task(office.run({SERVER: rounds}))
            async with stream(run) as liar:
                await body(liar)
            async with run.office(1) as honest:
                await asyncio.gather(server, honest.run(run.until(rounds, 1)))

    asyncio.run(asyncio.wait_for(go(), 60))
    return np.asarray(run.states()[SERVER]["x"])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    async def nothing(liar: Liar) -> None:
        pass

    return meet(linked(tmp_path_factory.mktemp("honest"), "fedavg", {"quorum": 2}), nothing)


NAN = Content({"x": np.array([1, np.nan, 0, 0], np.float32)}, {"n": 1})
SUMS: list[tuple[Content | bytes, dict[str, Any], str, str]] = [
    (part(size=5), {}, "shape_mismatch", "expected int64[4]"),
    (part(weight=101.0), {}, "bad_frame", "a weight of 101 for 1, at most 100 each"),
    (Content(part=Part(np.full(4, 2**62), 1 << 32, 32, (LIAR,))), {}, "bad_frame", "could overflow"),
    (NAN, {"kind": "message"}, "bad_frame", "'x' holds values that are not finite"),
    (
        part(),
        {"run": "fedavg/seed 0/0123456789ab"},
        "rejected",
        "no run 'fedavg/seed 0/0123456789ab' is under way here",
    ),
    (b"\xff\xff\xff", {}, "bad_frame", "no content"),
    (part(member=NodeId("stranger")), {}, "bad_frame", "a part of stranger"),
]


@pytest.mark.parametrize(("content", "how", "code", "message"), SUMS)
def test_a_bad_part_of_a_sum_is_refused_by_name_and_the_round_goes_on(
    content: Content | bytes, how: dict[str, Any], code: str, message: str, tmp_path: Path, expected: np.ndarray
) -> None:
    told = []

    async def lie(liar: Liar) -> None:
        await liar.send(content, **how)
        told.append(await liar.answer())

    assert np.array_equal(meet(linked(tmp_path, "fedavg", {"quorum": 2}), lie), expected)
    (note,) = told
    assert isinstance(note, Declined) and note.code == code and message in note.message


def test_half_an_upload_is_none(tmp_path: Path, expected: np.ndarray) -> None:
    async def lie(liar: Liar) -> None:
        await liar.send(part(50.0), only=40)

    assert np.array_equal(meet(linked(tmp_path, "fedavg", {"quorum": 2}), lie), expected)


def test_an_update_of_a_round_that_is_over_changes_nothing(tmp_path: Path, expected: np.ndarray) -> None:
    run = linked(tmp_path, "fedavg", {"quorum": 2})
    told = []

    async def go() -> None:
        async with run.office(0) as office, run.office(1) as honest:
            await asyncio.gather(office.run({SERVER: 1}), honest.run(run.until(1, 1)))
            async with stream(run) as liar:
                await liar.send(part(50.0))
                told.append(await liar.answer())
            await asyncio.gather(office.run({SERVER: 2}), honest.run(run.until(2, 1)))

    asyncio.run(asyncio.wait_for(go(), 60))
    assert [(type(note), note.sender) for note in told] == [(Settled, LIAR)]
    assert np.array_equal(np.asarray(run.states()[SERVER]["x"]), expected)


class Bad:
    """A Trainer whose `fit` ends with `value` everywhere."""

    def __init__(self, value: float) -> None:
        self.value = value

    def fit(self, start: Params, job: Job) -> Fitted:
        return Fitted(Params(start.layout, np.full_like(start.flat, self.value)), 0.0, 1, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**120])
@pytest.mark.parametrize(("name", "options"), [("fedbuff", {"buffer": 2}), ("dynamic_averaging", {"delta": 0.0})])
def test_a_bad_model_is_refused_by_name_and_the_others_learn_on(
    name: str, options: dict[str, Any], value: float, caplog: pytest.LogCaptureFixture
) -> None:
    trainers: dict[NodeId, Any] = {me: Quadratic(np.ones(4), np.full(4, 2.0)) for me in WORKERS}
    trainers[LIAR] = Bad(value)
    rules = federation(name, 3, options)
    driver = Memory(rules, trainers, catalog.make("topology", "star"), X, lr=lambda round: 0.5)
    driver.run(8, of=[SERVER])
    assert np.allclose(rules[SERVER].x.flat, 2.0, atol=0.01)
    assert any(f"refused the update of {LIAR}: 'w' holds values that are not finite" in m for m in caplog.messages)


@pytest.mark.parametrize(("name", "options"), [("fedbuff", {"buffer": 2}), ("dynamic_averaging", {"delta": 0.0})])
def test_a_run_whose_every_model_is_bad_ends(name: str, options: dict[str, Any]) -> None:
    trainers: dict[NodeId, Any] = {me: Bad(np.nan) for me in WORKERS}
    rules = federation(name, 3, options)
    driver = Memory(rules, trainers, catalog.make("topology", "star"), X, lr=lambda round: 0.5)
    with pytest.raises(NodeFailed, match=r"every worker's update was refused|all models overflow a sum"):
        driver.run(1, of=[SERVER])


@pytest.mark.parametrize("version", [-1, 1, 7, 0.5, float("nan")])
def test_a_version_that_was_not_given_out_is_refused(version: float, caplog: pytest.LogCaptureFixture) -> None:
    class FromNowhere(Half):
        traits = Traits(tolerates_loss=False, per_edge_state=False, conserves=None, directed=False, asynchronous=True)

        def turn(self, t: Turn) -> Effects[None]:
            yield from hear("job", t.server, stream=True)
            yield from tell("update", [t.server], {"d": np.ones(4, np.float32), "version": version}, stream=True)

    rules = federation("fedbuff", 3, {"buffer": 2})
    rules[LIAR] = FromNowhere()
    trainers = {me: Quadratic(np.ones(4), np.full(4, 2.0)) for me in WORKERS[:2]}
    driver = Memory(rules, trainers, catalog.make("topology", "star"), X, lr=lambda round: 0.5)
    driver.run(1, of=[SERVER])
    assert np.allclose(rules[SERVER].x.flat, 1.5)
    (line,) = [m for m in caplog.messages if "refused" in m][:1]
    assert f"round 0: refused the update of {LIAR}: version = {version:g} is none that was given out" in line


WHOLE = [
    (update(1.0, 5), "expected float32[4]"),
    (update(1.0, num=101.0), "claims 101 samples; max_samples = 100"),
    (update(2.0**110), "above 2^100"),
    (Content({"other": np.ones(4, np.float32)}), "no array 'd'"),
    (update(1.0, num=-3.0), "n = -3.0 is no number of samples"),
]


@pytest.mark.parametrize(("content", "message"), WHOLE)
def test_a_bad_update_that_comes_whole_is_refused_by_name_and_the_round_goes_on(
    content: Content, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = linked(tmp_path, "geometric_median", {"max_samples": 100, "quorum": 3})

    async def go() -> None:
        async with run.office(0) as office, run.office(1) as honest, stream(run) as liar:
            await liar.send(content, kind="message")
            await asyncio.gather(office.run({SERVER: 1}), honest.run(run.until(1, 1)))

    asyncio.run(asyncio.wait_for(go(), 60))
    (line,) = [line for line in caplog.messages if "refused" in line]
    assert line.startswith(f"round 0: refused the update of {LIAR}: ") and message in line
    assert np.isfinite(np.asarray(run.states()[SERVER]["x"])).all()
