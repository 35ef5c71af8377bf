"""Compressed updates in a rule's messages: what arrives, what is counted, and that the sender's key opens it."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.rng import Key
from tierline.core.types import NodeId
from tierline.learning.compressor import Compressor
from tierline.learning.driver.memory import Memory
from tierline.learning.effects import Effects, exchange
from tierline.learning.packing import packed, unpacked
from tierline.learning.rule import NodeInfo, State, Traits, Turn


class Sharing:
    """Sends its vector to all neighbours and keeps what it makes of theirs."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves=None, directed=False)
    x: Params

    def __init__(self, compressor: Compressor, mine: np.ndarray) -> None:
        self.compressor, self.mine = compressor, mine
        self.heard: dict[NodeId, np.ndarray] = {}

    def start(self, x: Params, node: NodeInfo) -> None:
        self.x = x

    def turn(self, t: Turn) -> Effects[None]:
        flat = packed(self.compressor.compress(t.rng("w"), self.mine))
        got = yield from exchange("w", {peer: {"w": flat} for peer in t.peers_out}, t.peers_in)
        for sender, heard in got.items():
            arrived = unpacked(heard.get("w"), self.mine.shape)
            self.heard[sender] = self.compressor.expand(Key(t.run, t.round, sender, "", "w"), arrived)

    def resync(self, t: Turn) -> Effects[None]:
        yield from ()

    def state(self) -> State:
        return self.compressor.state()

    def load(self, state: State) -> None:
        self.compressor.load(state)


@pytest.mark.parametrize("name", ["dithered", "randomk", "compressive_sampling", "error_feedback"])
def test_neighbours_hear_what_the_sender_would_make_of_its_message(name: str) -> None:
    ids = [NodeId(f"n{i}") for i in range(4)]
    rng = np.random.default_rng(3)
    rules = {me: Sharing(catalog.make("compress", name), rng.normal(size=900).astype(np.float32)) for me in ids}
    x = Params.from_arrays({"w": np.zeros(1)})
    driver = Memory(rules, {}, catalog.make("topology", "ring"), x, lr=lambda round: 0.1)  # type: ignore[arg-type]
    driver.run(1)
    num_bytes = 0
    for sender, rule in rules.items():
        key, alone = Key("run", 0, sender, "", "w"), catalog.make("compress", name)
        message = alone.compress(key, rule.mine)
        num_bytes += 2 * len(packed(message))
        hearers = [other.heard[sender] for other in rules.values() if sender in other.heard]
        assert len(hearers) == 2
        assert all(np.array_equal(y, alone.expand(key, message)) for y in hearers)
    assert driver.counts.num_bytes == num_bytes < 8 * 900  # of 8 x 3600 as float32
