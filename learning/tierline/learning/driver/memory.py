"""Runs the rules of many nodes in one process, in virtual time.

Nothing here sleeps: computing and links take as long as they are said to, and the order of events follows from that
alone, so that equal arguments give equal bytes. A turn is atomic: when a rule or a Trainer fails, every node goes back
to its last finished turn, and `run` may be called again. What was sent stays sent; a turn that runs again sends again,
and each receiver keeps the first message per (turn, tag, sender).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed, TierlineError
from tierline.core.rng import Key
from tierline.core.types import Arrays, NodeId
from tierline.learning.driver._peer import Peer, Running, Step, Wait, WaitForSum, sealed
from tierline.learning.driver._sums import Sums
from tierline.learning.driver._time import Pipe, Schedule, to_ns
from tierline.learning.driver.world import Counts, World
from tierline.learning.effects import Compute, Effect, Effects, Exchange, Message, Reduce, Reduced
from tierline.learning.errors import Deadlock, RuleError
from tierline.learning.rule import NodeInfo, Rule, State, Topology, Trainer, Turn

_MAX_NAMED = 16
"""Nodes that a Deadlock names."""


class Memory:
    """Drives one rule per node. Raises ConfigError where rules and world do not fit."""

    def __init__(
        self,
        rules: Mapping[NodeId, Rule],
        trainers: Mapping[NodeId, Trainer],
        topology: Topology,
        x: Params,
        *,
        lr: Callable[[int], float],
        batches: Callable[[NodeId, int], Arrays] = lambda node, round: {},
        world: World | None = None,
        run: str = "run",
    ) -> None:
        """Start every rule from `x`. `lr` and `batches` are functions of the round; `run` seeds the rules' draws."""
        nodes = tuple(rules)
        self._world = world or World()
        self._run, self._lr, self._batches = run, lr, batches
        self.counts = Counts()
        self._schedule = Schedule()
        self._pipes: dict[tuple[NodeId, NodeId], Pipe] = {}
        self._sums = Sums(len(nodes), self._schedule, self._pipe, self._deliver_sum)
        if not 0.0 <= self._world.loss < 1.0:
            raise ConfigError(f"world: loss = {self._world.loss} is not in [0, 1)")
        if trainers.keys() != rules.keys():
            raise ConfigError(f"trainers: {', '.join(sorted(trainers.keys() ^ rules.keys()))} without rule or Trainer")
        matrix = topology.mixing_matrix(len(nodes))
        self._peers: dict[NodeId, Peer] = {}
        for i, me in enumerate(nodes):
            rule = rules[me]
            if self._world.loss and not rule.traits.tolerates_loss:
                raise ConfigError(f"world: loss = {self._world.loss}, but the rule of {me} does not tolerate loss")
            near = topology.peers(len(nodes), i)
            peers = frozenset(nodes[j] for j in near)
            info = NodeInfo(me, nodes, peers, peers)
            w = {nodes[j]: float(matrix[i, j]) for j in (i, *near)}
            seconds = self._world.compute_of.get(me, self._world.compute_s)
            rule.start(x, info)
            self._peers[me] = Peer(info, rule, trainers[me], w, to_ns(seconds))

    @property
    def time_s(self) -> float:
        """Virtual time since the start."""
        return self._schedule.now_ns / 1e9

    @property
    def rounds(self) -> dict[NodeId, int]:
        """Turns finished, per node."""
        return {me: peer.round for me, peer in self._peers.items()}

    def run(self, until: int) -> None:
        """Go on until every node has finished `until` turns. Raises Deadlock, RuleError, or NodeFailed naming the node
        whose rule or Trainer failed; each node then stands at its last finished turn."""
        self._drive([peer for peer in self._peers.values() if peer.round < until], until)

    def resync(self) -> None:
        """Let every node rebuild what it remembers about its neighbours. Raises as `run` does; called again after that,
        it takes up the nodes that have not finished."""
        counts = [peer.num_resyncs for peer in self._peers.values()]
        target = max(counts) + (min(counts) == max(counts))
        self._drive([peer for peer in self._peers.values() if peer.num_resyncs < target], None)

    def states(self) -> dict[NodeId, State]:
        """Every node's state. Raises RuleError unless all have finished equally many turns."""
        if len(set(self.rounds.values())) > 1:
            raise RuleError("states: nodes stand at different rounds; run on until they meet")
        return {me: peer.rule.state() for me, peer in self._peers.items()}

    def restore(self, states: Mapping[NodeId, State], *, round: int) -> None:
        """Continue, in a fresh driver, from `states` taken after `round` turns; rules with per-edge state resync."""
        if states.keys() != self._peers.keys() or self._schedule.now_ns or any(self.rounds.values()):
            raise ConfigError("restore: needs the states of exactly these nodes, and a driver that has not run")
        for me, peer in self._peers.items():
            peer.rule.load(states[me])
            peer.round = round
        if any(peer.rule.traits.per_edge_state for peer in self._peers.values()):
            self.resync()

    def _drive(self, peers: Iterable[Peer], until: int | None) -> None:
        """Turns up to `until`, or one resync."""
        self._until = until
        try:
            for peer in peers:
                self._begin(peer)
            self._schedule.run()
            if any(peer.running for peer in self._peers.values()):
                raise Deadlock(f"nothing is under way: {'; '.join(self._who_waits())}")
        except BaseException:
            for peer in self._peers.values():
                peer.give_up()
            raise

    def _begin(self, peer: Peer) -> None:
        info, rule = peer.info, peer.rule
        turn = Turn(
            run=self._run,
            round=peer.round,
            me=info.me,
            lr=self._lr(peer.round),
            peers_in=info.peers_in,
            peers_out=info.peers_out,
            w=peer.w,
            nodes=info.nodes,
            batch=self._batches(info.me, peer.round),
        )
        step: Step = ("resync", peer.num_resyncs) if self._until is None else ("turn", peer.round)
        generator: Effects[None] = rule.resync(turn) if self._until is None else rule.turn(turn)
        peer.running = Running(step, generator, rule.state())
        self._answer(peer, peer.running, None)

    def _answer(self, peer: Peer, running: Running, value: object, delay_ns: int = 0) -> None:
        """Plan to hand `value` to the rule, unless the turn has been given up by then."""
        running.wait = None

        def go_on() -> None:
            if peer.running is running:
                self._go_on(peer, running, value)

        self._schedule.at(self._schedule.now_ns + delay_ns, go_on)

    def _go_on(self, peer: Peer, running: Running, value: object) -> None:
        where = f"{peer.info.me}, {running.step[0]} {running.step[1]}"
        try:
            self._carry_out(peer, running, running.generator.send(value))
        except StopIteration:
            peer.finish()
            self._sums.finished(running.step)
            if self._until is not None and peer.round < self._until:
                self._begin(peer)
        except RuleError as error:
            raise RuleError(f"{where}: {error}") from error
        except Exception as error:
            kind = error.code if isinstance(error, TierlineError) else type(error).__name__
            raise NodeFailed(f"{where}: {kind}: {error}; every node is back at its last finished turn") from error

    def _carry_out(self, peer: Peer, running: Running, effect: Effect) -> None:
        if isinstance(effect, Compute):
            self._answer(peer, running, peer.trainer.gradient(effect.at, effect.batch), peer.compute_ns)
        elif isinstance(effect, Exchange):
            self._exchange(peer, running, effect, f"tag {effect.tag!r}")
        elif isinstance(effect, Reduce):
            self._reduce(peer, running, effect, f"sum {effect.tag!r}")
        else:
            raise RuleError(f"yielded a {type(effect).__name__}, which is no effect")

    def _exchange(self, peer: Peer, running: Running, e: Exchange, where: str) -> None:
        strangers = (e.out.keys() - peer.info.peers_out) | (e.expect - peer.info.peers_in)
        twice = {j for j in e.out if (e.tag, j) in running.posted}
        twice |= {j for j in e.expect if (e.tag, j) in running.taken}
        quorum = len(e.expect) if e.quorum is None else e.quorum
        if strangers:
            raise RuleError(f"{where}: no edge to {', '.join(sorted(strangers))} in this topology")
        if twice:
            raise RuleError(f"{where}: used twice in one turn with {', '.join(sorted(twice))}; give each its own tag")
        if quorum > len(e.expect) or quorum < min(1, len(e.expect)):
            raise RuleError(f"{where}: a quorum of {quorum} out of {len(e.expect)} expected nodes")
        copies = {id(message): sealed(message, where) for message in e.out.values()}
        for receiver in sorted(e.out):
            self._post(peer, running.step, e.tag, receiver, *copies[id(e.out[receiver])])
            running.posted.add((e.tag, receiver))
        num_here = len(peer.arrived(running.step, e.tag, e.expect))
        running.wait = wait = Wait(e.tag, e.expect, quorum, quorum - num_here)
        if wait.num_missing <= 0:
            self._end(peer, running, wait)
        elif e.within_s is not None:
            self._schedule.at(self._schedule.now_ns + to_ns(e.within_s), lambda: self._end(peer, running, wait))

    def _post(self, peer: Peer, step: Step, tag: str, receiver: NodeId, message: Message, num_bytes: int) -> None:
        me, there = peer.info.me, self._peers[receiver]
        self.counts.num_messages += 1
        self.counts.num_bytes += num_bytes
        arrival_ns = self._pipe(me, receiver).arrival_ns(self._schedule.now_ns, num_bytes)
        if self._world.loss:
            # A function of the message's name alone: neither timing nor a repeated turn changes what is lost.
            draw = Key(f"{self._run}/loss/{self._world.seed}", step[1], me, receiver, f"{step[0]}/{tag}").uniform(1)[0]
            if draw < self._world.loss:
                self.counts.num_lost += 1
                return

        def deliver() -> None:
            if there.is_past(step):
                self.counts.num_late += 1
                return
            box = there.inbox.setdefault((step, tag), {})
            if me in box:
                return
            box[me] = message
            running = there.running
            if running and running.step == step and isinstance(running.wait, Wait):
                wait = running.wait
                if wait.tag == tag and me in wait.expect:
                    wait.num_missing -= 1
                    if wait.num_missing == 0:
                        self._end(there, running, wait)

        self._schedule.at(arrival_ns, deliver)

    def _end(self, peer: Peer, running: Running, wait: Wait) -> None:
        """Answer a wait that has reached its quorum, or whose time is over."""
        if peer.running is running and running.wait is wait:
            self._answer(peer, running, peer.take(running, wait))

    def _reduce(self, peer: Peer, running: Running, e: Reduce, where: str) -> None:
        me = peer.info.me
        if e.group - self._peers.keys() or me not in e.group:
            raise RuleError(f"{where}: the group lacks {me}, or holds nodes that are not in this run")
        if e.tag in running.summed:
            raise RuleError(f"{where}: used twice in one turn; give each sum its own tag")
        running.summed.add(e.tag)
        shared, num_bytes = self._sums.join(me, running.step, e, where)
        running.wait = WaitForSum(e.tag, e.group, shared.members)
        self.counts.num_messages += 1
        self.counts.num_bytes += num_bytes

    def _deliver_sum(self, member: NodeId, step: Step, tag: str, result: Reduced) -> None:
        peer = self._peers[member]
        running = peer.running
        if running and running.step == step and isinstance(running.wait, WaitForSum) and running.wait.tag == tag:
            self._answer(peer, running, result)

    def _pipe(self, source: NodeId, target: NodeId) -> Pipe:
        edge = (source, target)
        if edge not in self._pipes:
            self._pipes[edge] = Pipe(self._world.link_of.get(edge, self._world.link))
        return self._pipes[edge]

    def _who_waits(self) -> list[str]:
        lines: list[str] = []
        awaited: set[NodeId] = set()
        for me, peer in sorted(self._peers.items()):
            if peer.running is None or peer.running.wait is None:
                continue
            step, wait = peer.running.step, peer.running.wait
            if isinstance(wait, Wait):
                missing = wait.expect - set(peer.arrived(step, wait.tag, wait.expect))
                what = f"{wait.tag!r} from"
            else:
                missing = wait.group - wait.members
                what = f"the sum {wait.tag!r} with"
            awaited |= missing
            lines.append(f"{me} in {step[0]} {step[1]} waits for {what} {', '.join(sorted(missing))}")
        idle = sorted(me for me in awaited if self._peers[me].running is None)
        if idle:
            lines.append(f"{', '.join(idle)} finished")
        return lines if len(lines) <= _MAX_NAMED else [*lines[:_MAX_NAMED], f"and {len(lines) - _MAX_NAMED} more"]
