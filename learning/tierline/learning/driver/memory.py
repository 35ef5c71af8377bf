"""Runs the rules of many nodes in one process, in virtual time.

Nothing here sleeps: computing and links take as long as they are said to, and the order of events follows from that
alone, so that equal arguments give equal bytes. A turn is atomic: when a rule or a Trainer fails, every node goes back
to its last finished turn, and `run` may be called again. What was sent stays sent; a turn that runs again sends again,
and each receiver keeps the first message per (turn, tag, sender).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed, TierlineError
from tierline.core.rng import Key
from tierline.core.types import Arrays, NodeId
from tierline.learning.compute import Compute, Job
from tierline.learning.driver._arrivals import Arrivals
from tierline.learning.driver._compute import ask, num_steps
from tierline.learning.driver._near import is_directed, phases, seat
from tierline.learning.driver._peer import Peer, Running, Step, Wait, WaitForSum, who_waits
from tierline.learning.driver._step import Post, is_timed, open_exchange, open_reduce, place_of, turn_of
from tierline.learning.driver._sums import Sums
from tierline.learning.driver._time import Pipe, Schedule, to_ns
from tierline.learning.driver.world import Counts, Participants, World
from tierline.learning.effects import Effect, Effects, Exchange, Reduce, Reduced
from tierline.learning.errors import Deadlock, RuleError
from tierline.learning.rule import Rule, State, Topology, Trainer

LOG = logging.getLogger("tierline.learning")


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
        job: Job | None = None,
        world: World | None = None,
        run: str = "run",
        watch: Callable[[NodeId, int, object], None] = lambda node, round, answer: None,
        replay: Participants | None = None,
    ) -> None:
        """Start every rule from `x`. `lr` and `batches` are functions of the round, `job` is what every Turn says about
        local training; `run` seeds the rules' draws. A node without a Trainer cannot compute. `watch` is shown every
        answer of a Trainer, with its node and round. With `replay` waits that time decides end with those whom they
        heard in an earlier run, whatever the world's links say; one that had not ended then does not end now."""
        nodes = tuple(rules)
        self._world = world or World()
        self._run, self._lr, self._batches, self._job, self._watch = run, lr, batches, job or Job(), watch
        self._replay = replay
        self._limits: Mapping[NodeId, int] | None = None
        self._open: set[NodeId] = set()
        self.counts = Counts()
        self._schedule = Schedule()
        self._arrivals = {me: Arrivals() for me in nodes}
        self._pipes: dict[tuple[NodeId, NodeId], Pipe] = {}
        self._sums = Sums(
            len(nodes), self._schedule, self._pipe, self._deliver_sum, self.counts, is_replay=replay is not None
        )
        if not 0.0 <= self._world.loss < 1.0:
            raise ConfigError(f"world: loss = {self._world.loss} is not in [0, 1)")
        if trainers.keys() - rules.keys():
            raise ConfigError(f"trainers: {', '.join(sorted(trainers.keys() - rules.keys()))} without a rule")
        near = phases(topology, nodes)
        directed = is_directed(near)
        x = x.copy()
        x.flat.flags.writeable = False
        self._peers: dict[NodeId, Peer] = {}
        for me in nodes:
            rule = rules[me]
            if self._world.loss and not rule.traits.tolerates_loss:
                raise ConfigError(f"world: loss = {self._world.loss}, but the rule of {me} does not tolerate loss")
            info = seat(me, near, rule, directed=directed)
            seconds = self._world.compute_of.get(me, self._world.compute_s)
            rule.start(x, info)
            self._peers[me] = Peer(info, rule, trainers.get(me), near[me], to_ns(seconds))

    @property
    def time_s(self) -> float:
        """Virtual time since the start."""
        return self._schedule.now_ns / 1e9

    @property
    def rounds(self) -> dict[NodeId, int]:
        """Turns finished, per node."""
        return {me: peer.round for me, peer in self._peers.items()}

    def run(self, until: int, *, of: Collection[NodeId] | None = None) -> None:
        """Go on until every node, or each of `of`, has finished `until` turns. Nodes outside `of` take turns as long
        as there is something to do, and stay in the middle of one. Raises Deadlock, RuleError, or NodeFailed naming
        the node whose rule or Trainer failed; each node then stands at its last finished turn."""
        counted = self._peers.keys() if of is None else frozenset(of)
        if counted - self._peers.keys():
            raise ConfigError(f"run: no node {', '.join(sorted(counted - self._peers.keys()))}")
        self._limits = dict.fromkeys(counted, until)
        waited_for = [self._peers[me] for me in counted if self._peers[me].round < until]
        self._drive([p for p in self._peers.values() if p.round < self._limits.get(p.info.me, p.round + 1)], waited_for)

    def resync(self) -> None:
        """Let every node rebuild what it remembers about its neighbours. Raises as `run` does; called again after that,
        it takes up the nodes that have not finished."""
        counts = [peer.num_resyncs for peer in self._peers.values()]
        target = max(counts) + (min(counts) == max(counts))
        if any(peer.running for peer in self._peers.values()):
            raise RuleError("resync: nodes are in the middle of a turn; run on until they meet")
        self._limits = None
        behind = [peer for peer in self._peers.values() if peer.num_resyncs < target]
        self._drive(behind, behind)

    def states(self) -> dict[NodeId, State]:
        """Every node's state. Raises RuleError unless all have finished equally many turns, and begun no other."""
        if len(set(self.rounds.values())) > 1 or any(peer.running for peer in self._peers.values()):
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

    def _drive(self, peers: Iterable[Peer], waited_for: Iterable[Peer]) -> None:
        """Begin with `peers`, and go on until none of `waited_for` is in a turn that it still has to do."""
        self._open = {peer.info.me for peer in waited_for}
        try:
            for peer in peers:
                if peer.running is None:
                    self._begin(peer)
            # Where all nodes are waited for, messages that nobody reads any more arrive too.
            some_go_on = self._limits is not None and len(self._limits) < len(self._peers)
            self._schedule.run(lambda: some_go_on and not self._open)
            if self._open:
                raise Deadlock(f"nothing is under way: {'; '.join(who_waits(self._peers))}")
        except BaseException:
            for peer in self._peers.values():
                peer.give_up()
            raise

    def _begin(self, peer: Peer) -> None:
        rule = peer.rule
        turn = turn_of(peer, self._run, self._lr, self._batches, self._job)
        step: Step = ("resync", peer.num_resyncs) if self._limits is None else ("turn", peer.round)
        generator: Effects[None] = rule.resync(turn) if self._limits is None else rule.turn(turn)
        peer.running = Running(step, generator, rule.state(), peer.near)
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
            me = peer.info.me
            if self._limits is not None and peer.round < self._limits.get(me, peer.round + 1):
                self._begin(peer)
            else:
                self._open.discard(me)
        except RuleError as error:
            raise RuleError(f"{where}: {error}") from error
        except Exception as error:
            kind = error.code if isinstance(error, TierlineError) else type(error).__name__
            raise NodeFailed(f"{where}: {kind}: {error}; every node is back at its last finished turn") from error

    def _carry_out(self, peer: Peer, running: Running, effect: Effect) -> None:
        if isinstance(effect, Exchange):
            self._exchange(peer, running, effect, f"tag {effect.tag!r}")
        elif isinstance(effect, Reduce):
            self._reduce(peer, running, effect, f"sum {effect.tag!r}")
        elif not isinstance(effect, Compute):
            raise RuleError(f"yielded a {type(effect).__name__}, which is no effect")
        elif peer.trainer is None:
            raise RuleError(f"asked for a {type(effect).__name__}, but this node has no Trainer")
        else:
            answer = ask(peer.trainer, effect)
            self._watch(peer.info.me, peer.round, answer)
            self._answer(peer, running, answer, peer.compute_ns * num_steps(answer))

    def _exchange(self, peer: Peer, running: Running, e: Exchange, where: str) -> None:
        wait, posts = open_exchange(running, e, where)
        for post in posts:
            self._post(peer, running.step, e.tag, post)
        running.wait = wait
        if self._replay is not None and is_timed(e):
            heard = self._heard(peer.info.me, running, self._replay)
            wait.expect, wait.quorum = (wait.expect, len(wait.expect) + 1) if heard is None else (heard, len(heard))
        wait.here.update(peer.arrived(running, wait))
        if len(wait.here) >= wait.quorum:
            self._end(peer, running, wait)
            return
        now_ns, arrivals = self._schedule.now_ns, self._arrivals[peer.info.me]
        within_ns = arrivals.within_ns(e.tag, e.within_s)
        if within_ns is not None and self._replay is None:
            arrivals.opened((running.step, e.tag), e.within_s, now_ns, peer.came_before(running, wait))
            self._schedule.at(now_ns + within_ns, lambda: self._end(peer, running, wait))

    @staticmethod
    def _heard(me: NodeId, running: Running, replay: Participants) -> frozenset[NodeId] | None:
        """Who took part in the next of a turn's waits that time decides; None: it had not ended."""
        number, running.num_waits = running.num_waits, running.num_waits + 1
        return replay.get((me, *running.step, number))

    def _post(self, peer: Peer, step: Step, tag: str, post: Post) -> None:
        receiver, num_bytes, mark = post.receiver, post.num_bytes, post.mark
        me, there = peer.info.me, self._peers[receiver]
        self.counts.num_messages += 1
        self.counts.num_bytes += num_bytes
        arrival_ns = self._pipe(me, receiver).arrival_ns(self._schedule.now_ns, num_bytes)
        if self._world.loss:
            # A function of the message's name alone: neither timing nor a repeated turn changes what is lost.
            name = f"{step[0]}/{tag}" if mark is None else f"{step[0]}/{tag}/{mark[1]}"
            draw = Key(f"{self._run}/loss/{self._world.seed}", step[1], me, receiver, name).uniform(1)[0]
            if draw < self._world.loss:
                self.counts.num_lost += 1
                return

        def deliver() -> None:
            self._arrivals[receiver].came((step, tag), me, self._schedule.now_ns)
            kept = there.put(step, tag, me, post.message, mark)
            if kept == "late":
                self.counts.num_late += 1
                LOG.info("%s: its %r of %s %d for %s came too late: dropped", me, tag, *step, receiver)
            running = there.running
            if kept != "new" or running is None or not isinstance(running.wait, Wait):
                return
            wait = running.wait
            same = wait.stream if mark is not None else not wait.stream and running.step == step
            if same and wait.tag == tag and me in wait.expect:
                wait.here.add(me)
                if len(wait.here) >= wait.quorum:
                    self._end(there, running, wait)

        self._schedule.at(arrival_ns, deliver)

    def _end(self, peer: Peer, running: Running, wait: Wait) -> None:
        """Answer a wait that has reached its quorum, or whose time is over."""
        if peer.running is running and running.wait is wait:
            self._answer(peer, running, peer.take(running, wait))

    def _reduce(self, peer: Peer, running: Running, e: Reduce, where: str) -> None:
        me = peer.info.me
        open_reduce(peer, running, e, where)
        decides, decided = self._replay is not None and me == place_of(e, peer.info.nodes), None
        if self._replay is not None and decides and is_timed(e):
            decided = self._heard(me, running, self._replay) or frozenset()
        shared, num_bytes = self._sums.join(me, running.step, e, where, decides=decides, decided=decided)
        if me in e.group:
            self.counts.num_messages += 1
            self.counts.num_bytes += num_bytes
        if me in e.to:
            running.wait = WaitForSum(e.tag, e.group, shared.members)
        else:
            self._answer(peer, running, None)

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
