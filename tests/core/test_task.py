from __future__ import annotations

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.errors import ConfigError, ShapeMismatch
from tierline.core.task.classification import Classification
from tierline.core.types import Answer

TASK = Classification(labels=["car", "bus", "person"])


def answers(*indices: int) -> list[Answer]:
    return [Answer(index, "", 1.0) for index in indices]


def test_decodes_class_and_softmax_probability() -> None:
    logits_BK = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])).astype(np.float32)
    first, second = TASK.decode({"logits": logits_BK})
    assert (first.index, first.label, second.index, second.label) == (1, "bus", 0, "car")
    assert first.confidence == pytest.approx(0.7, abs=1e-6)
    assert second.confidence == pytest.approx(0.5, abs=1e-6)
    assert type(first.index) is int
    assert type(first.confidence) is float


def test_first_of_equals_wins_and_broken_logits_have_no_confidence() -> None:
    equal, broken, endless = TASK.decode({"logits": np.array([[1, 1, 1], [0, np.nan, 0], [np.inf, 0, 0]], np.float32)})
    assert (equal.index, equal.confidence) == (0, pytest.approx(1 / 3))
    assert broken.confidence == endless.confidence == 0.0


def test_no_rows_no_answers() -> None:
    assert TASK.decode({"logits": np.zeros((0, 3), np.float32)}) == []


def test_as_many_labels_as_classes() -> None:
    with pytest.raises(ShapeMismatch, match=r"2 classes.*3 labels"):
        TASK.decode({"logits": np.zeros((1, 2), np.float32)})
    with pytest.raises(ConfigError, match="empty"):
        Classification(labels=[])


def test_quality_is_accuracy() -> None:
    assert TASK.quality(answers(0, 1, 2, 2), [0, 1, 1, 2]) == 0.75
    assert TASK.quality([], []) == 0.0
    with pytest.raises(ShapeMismatch, match="1 answers against 2"):
        TASK.quality(answers(0), [0, 1])


def test_agreement_looks_at_the_class_only() -> None:
    assert TASK.agreement(Answer(1, "bus", 0.9), Answer(1, "bus", 0.4)) == 1.0
    assert TASK.agreement(Answer(1, "bus", 0.9), Answer(2, "person", 0.9)) == 0.0


def test_the_catalogue_finds_it() -> None:
    assert isinstance(catalog.make("task", "classification", labels=["a"]), Classification)
