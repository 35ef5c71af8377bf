"""One sample on its way through one node: its parts, where it stands, what it has spent."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field

from tierline.core.link.messages import HopTimes
from tierline.core.telemetry.ledger import SPAN_INDEX, SPANS
from tierline.core.types import Array, Arrays, SampleId, Truth

NUM_SPANS = len(SPANS)
CAPTURE = SPAN_INDEX["capture"]
PREPROCESS = SPAN_INDEX["preprocess"]
SECTION = SPAN_INDEX["section"]
AGGREGATE = SPAN_INDEX["aggregate"]
EXIT = SPAN_INDEX["exit"]
ENCODE = SPAN_INDEX["encode"]
SEND = SPAN_INDEX["send"]
QUEUE = SPAN_INDEX["queue"]
PULL = SPAN_INDEX["pull"]
DECODE = SPAN_INDEX["decode"]
REPLY = SPAN_INDEX["reply"]


class State(enum.Enum):
    """Where a sample stands at a junction."""

    JOIN = enum.auto()
    PULL = enum.auto()
    RUN = enum.auto()
    UP = enum.auto()
    DONE = enum.auto()


@dataclass(slots=True)
class PartRow:
    """One view's part of a sample (or the fused feature that a junction below sent)."""

    owner: str
    """Child that sent it; empty where this node made it."""
    name: str
    """As the owner calls it: its view, or its node id where fused."""
    arrived_ns: int
    decode_ns: int
    logits_K: Array | None = None
    feature: Array | None = None
    truth: Truth | None = None
    image: Array | None = None
    """What was captured, kept while another Plan is being prepared: the sample may turn out to be made under that."""
    is_late: bool = False
    """It came after the join: all it did here was wait for the answer."""
    own_ns: tuple[int, ...] = ()
    """Spans this node spent on this part alone before it arrived here (capture, preprocess, section)."""


@dataclass(slots=True)
class Journey:
    """A sample at a junction. `spans_ns` are shared by all its parts."""

    id: SampleId
    deadline_ns: int
    level: int
    """Level whose parts or feature it holds."""
    state: State = State.JOIN
    parts: dict[str, PartRow] = field(default_factory=dict)
    """By the Bundle's part name (`*` where fused)."""
    awaited: set[str] = field(default_factory=set)
    """Parts whose features were pulled and have not come."""
    spans_ns: list[int] = field(default_factory=lambda: [0] * NUM_SPANS)
    mark_ns: int = 0
    """When the current wait began."""
    joined_ns: int = 0
    """When its views were complete, or the wait for them ended."""
    num_views: int = 0
    is_short: bool = False
    """Fewer views than the Plan asks for."""
    exit: str = ""
    outputs: Arrays = field(default_factory=dict)
    """Best answer so far: outputs of one row, without a batch axis, from the exit named above."""
    feature: Array | None = None
    """The next Section's input."""
    above: tuple[HopTimes, ...] = ()
    """What the nodes above spent: one row each."""

    def spend(self, span: int, ns: int) -> None:
        self.spans_ns[span] += ns

    def waited(self, span: int, now_ns: int) -> None:
        """Charge the wait since `mark_ns` to a span."""
        self.spans_ns[span] += now_ns - self.mark_ns
        self.mark_ns = now_ns

    def hop_row(self, part: PartRow, now_ns: int) -> tuple[int, ...]:
        """Residence and spans of one part of this sample."""
        if part.is_late:
            spans = list(part.own_ns) or [0] * NUM_SPANS
            spans[DECODE] += part.decode_ns
            spans[QUEUE] += now_ns - part.arrived_ns - sum(spans)
            return (now_ns - part.arrived_ns, *spans)
        spans = list(self.spans_ns)
        spans[DECODE] += part.decode_ns
        for span, ns in enumerate(part.own_ns):
            spans[span] += ns
        # From this part's readiness until the last view came (or the window closed).
        spans[QUEUE] += max(0, self.joined_ns - part.arrived_ns - part.decode_ns - sum(part.own_ns))
        return (now_ns - part.arrived_ns, *spans)


def is_beyond(sample: SampleId, ends: SampleId) -> bool:
    """Whether an id is of the same minter as `ends`, and not before it."""
    return sample.seq >= ends.seq and sample.epoch == ends.epoch and sample.origin == ends.origin


def count_degraded(counts: dict[str, int], reason: str) -> None:
    """In all, and by kind of reason: what follows a colon is for people."""
    counts["degraded"] += 1
    counts[f"degraded:{reason.partition(':')[0]}"] += 1


@dataclass(slots=True)
class Answered:
    """Kept for a while, so that duplicates and late views get the same verdict. Not to be changed once made."""

    exit: str
    outputs: Arrays
    num_views: int
    degraded: str


class Memory:
    """What the flows of one node hand on from Plan to Plan."""

    def __init__(self, started_ns: int) -> None:
        self.started_ns = started_ns
        """When the first of them began."""
        self.counts: dict[str, int] = defaultdict(int)
        """Samples by exit, and `degraded`, `late`, `refused`, `batches`, `batched`."""
        self.answered: OrderedDict[SampleId, Answered] = OrderedDict()
