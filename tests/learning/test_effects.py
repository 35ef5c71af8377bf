from __future__ import annotations

import numpy as np
import pytest

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ShapeMismatch
from tierline.core.types import NodeId
from tierline.learning.compute import Gradient, GradientAt
from tierline.learning.effects import (
    Exchange,
    Message,
    Reduce,
    exchange,
    gradient,
    number,
    params,
    reduce,
)
from tierline.learning.rule import Turn

X = Params.from_arrays({"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
A, B = NodeId("a"), NodeId("b")


def test_helpers_yield_their_effect_and_return_the_answer() -> None:
    asked = exchange("x", {B: {"n": 1}}, [B], quorum=1, within_s=2.0)
    effect = next(asked)
    assert isinstance(effect, Exchange)
    assert (effect.tag, effect.out, effect.expect, effect.quorum, effect.within_s) == ("x", {B: {"n": 1}}, {B}, 1, 2.0)
    with pytest.raises(StopIteration) as done:
        asked.send({B: {"n": 2}})
    assert done.value.value == {B: {"n": 2}}

    effect = next(reduce("g", X, [A, B], weight=3.0, quorum=2, fraction_bits=20))
    assert isinstance(effect, Reduce)
    assert (effect.tag, effect.group, effect.weight, effect.quorum, effect.fraction_bits) == ("g", {A, B}, 3.0, 2, 20)
    assert effect.value is X and effect.within_s is None

    computing = gradient(X, {})
    effect = next(computing)
    assert isinstance(effect, GradientAt) and effect.at is X
    answer = Gradient(X, 0.5, 3)
    with pytest.raises(StopIteration) as done:
        computing.send(answer)
    assert done.value.value is answer


def test_effects_are_frozen() -> None:
    effect = next(exchange("x", {}, []))
    with pytest.raises(AttributeError):
        effect.tag = "y"  # type: ignore[misc, union-attr]


def test_reading_a_message_names_what_is_wrong() -> None:
    message: Message = {"x": X.flat, "n": 3, "loss": 0.5, "wide": X.flat.astype(np.float64)}
    got = params(message, "x", X)
    assert got.layout == X.layout and np.array_equal(got["w"], X["w"])
    assert (number(message, "n"), number(message, "loss")) == (3.0, 0.5)
    with pytest.raises(BadFrame, match="no array 'y'; it holds loss, n, wide, x"):
        params(message, "y", X)
    with pytest.raises(BadFrame, match="no array 'n'"):
        params(message, "n", X)
    with pytest.raises(BadFrame, match="no number 'x'"):
        number(message, "x")
    with pytest.raises(BadFrame, match="it holds nothing"):
        number({}, "x")
    with pytest.raises(ShapeMismatch, match=r"'wide' is float64\[6\], expected float32\[6\]"):
        params(message, "wide", X)
    with pytest.raises(ShapeMismatch, match=r"'x' is float32\[5\]"):
        params({"x": X.flat[:5]}, "x", X)


def test_a_turns_randomness_depends_on_run_round_node_and_name() -> None:
    def draw(run: str = "r", round: int = 0, me: NodeId = A, name: str = "noise") -> list[float]:
        turn = Turn(run, round, me, 0.1, frozenset(), frozenset(), {me: 1.0}, (A, B), {})
        assert turn.num_nodes == 2
        values: list[float] = turn.rng(name).uniform(4).tolist()
        return values

    assert draw() == draw()
    others = [draw(run="s"), draw(round=1), draw(me=B), draw(name="mask")]
    assert all(other != draw() for other in others)
