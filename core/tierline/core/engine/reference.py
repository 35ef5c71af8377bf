"""ONNX's own evaluator in NumPy: slow, and the oracle that the other engines are tested against."""

from __future__ import annotations

from onnx.reference import ReferenceEvaluator

from tierline.core.engine._check import batch_size, first_line, no_rows, zeros
from tierline.core.engine._onnx import parse, section_spec
from tierline.core.errors import EngineError
from tierline.core.types import PRECISIONS, Arrays


class Reference:
    """Engine `reference`; `threads` has no effect on it."""

    def __init__(self, *, model: bytes, name: str, threads: int = 1) -> None:
        parsed = parse(model, name)
        self.spec = section_spec(parsed, name)
        self._name = name
        self._outputs = list(self.spec.outputs)
        try:
            self._evaluator = ReferenceEvaluator(parsed)
        except Exception as error:
            raise EngineError(f"{name}: the reference evaluator refuses this model: {first_line(error)}") from error

    @staticmethod
    def precisions() -> tuple[str, ...]:
        """All: float8 as rounded float32."""
        return PRECISIONS

    def warmup(self) -> None:
        self.run(zeros(self.spec, 1))

    def run(self, inputs: Arrays) -> Arrays:
        if batch_size(self.spec, inputs, self._name) == 0:
            return no_rows(self.spec)
        try:
            results = self._evaluator.run(self._outputs, dict(inputs))
        except Exception as error:
            raise EngineError(f"{self._name}: {first_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Nothing is held open."""
