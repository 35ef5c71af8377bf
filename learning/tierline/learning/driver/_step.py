"""What every driver does with a turn and its effects before anything moves: making the Turn, checking the contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tierline.core.types import Arrays, NodeId
from tierline.learning.compute import Job
from tierline.learning.driver._peer import Mark, Peer, Running, Wait
from tierline.learning.effects import Exchange, Message, Reduce
from tierline.learning.errors import RuleError
from tierline.learning.rule import Turn


@dataclass(frozen=True, slots=True, eq=False)
class Post:
    """A message to send, one object for all receivers of equal ones. `mark` is its place in a stream."""

    receiver: NodeId
    message: Message
    num_bytes: int
    mark: Mark | None


def turn_of(
    peer: Peer, run: str, lr: Callable[[int], float], batches: Callable[[NodeId, int], Arrays], job: Job
) -> Turn:
    """The turn that a node takes next."""
    me, near = peer.info.me, peer.near
    turn = Turn(
        run=run,
        round=peer.round,
        me=me,
        lr=lr(peer.round),
        peers_in=near.peers_in,
        peers_out=near.peers_out,
        w=near.w,
        nodes=peer.info.nodes,
        batch=batches(me, peer.round),
    )
    return dataclasses.replace(turn, job=dataclasses.replace(job, lr=turn.lr, key=turn.rng("fit")))


def open_exchange(running: Running, e: Exchange, where: str, *, copies: bool = True) -> tuple[Wait, list[Post]]:
    """What an Exchange sends, by name of the receiver, and what it waits for. Messages are read-only copies, unless
    the driver has no use for them once the rule goes on. Raises RuleError."""
    strangers = (e.out.keys() - running.near.peers_out) | (e.expect - running.near.peers_in)
    twice = {j for j in e.out if (e.tag, j) in running.posted}
    twice |= {j for j in e.expect if (e.tag, j) in running.taken}
    quorum = len(e.expect) if e.quorum is None else e.quorum
    if strangers:
        raise RuleError(f"{where}: no edge to {', '.join(sorted(strangers))} in this topology")
    if twice:
        raise RuleError(f"{where}: used twice in one turn with {', '.join(sorted(twice))}; give each its own tag")
    if quorum > len(e.expect) or quorum < min(1, len(e.expect)):
        raise RuleError(f"{where}: a quorum of {quorum} out of {len(e.expect)} expected nodes")
    sealed = {id(message): _sealed(message, where, copies=copies) for message in e.out.values()}
    posts = []
    for receiver in sorted(e.out):
        mark: Mark | None = None
        if e.stream:
            number = running.num_streamed.get((e.tag, receiver), 0)
            running.num_streamed[e.tag, receiver] = number + 1
            mark = (running.step[1], number)
        else:
            running.posted.add((e.tag, receiver))
        posts.append(Post(receiver, *sealed[id(e.out[receiver])], mark))
    return Wait(e.tag, e.expect, quorum, e.stream), posts


def is_timed(e: Exchange | Reduce) -> bool:
    """Who is heard is decided by time, not by the rule; such waits are numbered within their turn."""
    if isinstance(e, Reduce):
        return e.within_s is not None or (e.quorum is not None and e.quorum < len(e.group))
    late = e.stream or e.within_s is not None or (e.quorum is not None and e.quorum < len(e.expect))
    return bool(e.expect) and late


def place_of(e: Reduce, nodes: Sequence[NodeId]) -> NodeId:
    """Where a sum is added up: with the first in the run's order of those who want it."""
    return next(node for node in nodes if node in e.to)


def open_reduce(peer: Peer, running: Running, e: Reduce, where: str) -> None:
    """Raises RuleError for a sum that this node may not take part in, or does already."""
    me = peer.info.me
    if (e.group | e.to) - set(peer.info.nodes) or me not in e.group | e.to or not e.group or not e.to:
        raise RuleError(f"{where}: the group lacks {me}, or holds nodes that are not in this run")
    if e.tag in running.summed:
        raise RuleError(f"{where}: used twice in one turn; give each sum its own tag")
    running.summed.add(e.tag)


def _sealed(message: Message, where: str, *, copies: bool) -> tuple[Message, int]:
    """A message, perhaps as a read-only copy, and how many bytes its values take. Raises RuleError for other values."""
    copy: dict[str, np.ndarray | int | float] = {}
    num_bytes = 0
    for name, value in message.items():
        if isinstance(value, np.ndarray):
            copy[name] = value
            if copies:
                copy[name] = array = value.copy()
                array.flags.writeable = False
            num_bytes += value.nbytes
        elif isinstance(value, int | float):
            copy[name] = value
            num_bytes += 8
        else:
            raise RuleError(f"{where}: {name!r} is a {type(value).__name__}; a message holds arrays and numbers")
    return copy, num_bytes
