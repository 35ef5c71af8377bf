"""Asking a Trainer, for every driver alike."""

from __future__ import annotations

from tierline.learning.compute import Backward, Compute, Draw, Drawn, Fit, Fitted, Forward, GradientAt
from tierline.learning.rule import Trainer


def ask(trainer: Trainer, effect: Compute) -> object:
    """The answer to one Compute."""
    if isinstance(effect, GradientAt):
        return trainer.gradient(effect.at, effect.batch, effect.terms)
    if isinstance(effect, Fit):
        return trainer.fit(effect.start, effect.job)
    if isinstance(effect, Forward):
        return trainer.forward(effect.at, effect.token, effect.inputs)
    if isinstance(effect, Backward):
        return trainer.backward(effect.token, effect.gradients)
    if isinstance(effect, Draw):
        return trainer.draw(effect.job, effect.step)
    return trainer.outputs(effect.at, effect.batch, effect.names)


def num_steps(answer: object) -> int:
    """How many times the time of one Compute an answer took."""
    if isinstance(answer, Drawn):
        return 0
    return answer.num_steps if isinstance(answer, Fitted) else 1
