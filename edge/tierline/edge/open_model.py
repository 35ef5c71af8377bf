"""What an agent shows to clients of the Open Inference Protocol: the hierarchy from here upwards, as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tierline.core.flow.node import Node
from tierline.core.flow.whole import Whole
from tierline.core.link.open_inference import Card, Verdict
from tierline.core.link.tasks import together
from tierline.core.types import Array
from tierline.edge.service import Access


class OpenModel:
    """Samples of the views that this node hosts go the way of its cameras' samples, up where they are hard.

    A node that hosts none has nowhere to start them, and runs the whole Bundle itself.
    """

    def __init__(self, node: Node, access: Access, whole: Whole) -> None:
        self._node, self._access, self._whole = node, access, whole

    def card(self) -> Card | None:
        card, hosted = self._whole.card(), self._hosted()
        return Card(card.name, card.version, hosted, card.channels) if card is not None and hosted else card

    async def infer(self, images: Mapping[str, Array]) -> Sequence[Verdict]:
        """All rows at once, each a sample of its own. Raises AdmissionRefused where too many wait already."""
        if not self._hosted():
            return await self._whole.infer(images)
        num_rows = len(next(iter(images.values())))
        outcomes = await together(
            self._access.answer({view: x_B[row] for view, x_B in images.items()}, None, 0.0) for row in range(num_rows)
        )
        return [Verdict(outcome.answer, outcome.exit, outcome.degraded) for outcome in outcomes]

    def _hosted(self) -> tuple[str, ...]:
        return tuple(self._node.flow.placement.views) if self._node.flow is not None else ()
