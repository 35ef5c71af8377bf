"""Which codecs a node has, which a Plan asks of it, and the refusal that names what is missing.

A node sends the feature of the highest level that ran on its way from the sensor; a link's codec is used by both of
its ends, so a node needs its own and those of the nodes below it. Outputs, and what no scale can hold, travel in
codecs that every node has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from functools import cache

from tierline.core import catalog
from tierline.core.coding import stage_names
from tierline.core.errors import ConfigError, MissingDependency, UnknownCodec
from tierline.core.flow.coding import EXACT_CODEC, OUTPUT_CODEC
from tierline.core.plan import Plan


@cache
def offered_codecs() -> tuple[str, ...]:
    """Catalogue names of the codecs that work here: one whose library is missing is not offered."""
    return tuple(name for name in catalog.names("codec") if catalog.is_usable("codec", name))


def uplink_levels(plan: Plan) -> dict[str, set[int]]:
    """By node: the levels whose features it may send to its parent. The root, and who has nothing to send, are absent.

    Follows every view's way up as `place` laid it: level 0 at its host, then each Section where it runs.
    """
    found: dict[str, set[int]] = defaultdict(set)
    last = len(plan.codecs) - 1
    for host, placement in plan.nodes.items():
        level, at = 0, host
        while placement.views and plan.nodes[at].parent:
            level = max(level, *plan.nodes[at].runs, 0)
            if level == last:
                break
            found[at].add(level)
            at = plan.nodes[at].parent
    return dict(found)


def needed_tokens(plan: Plan, node: str) -> set[str]:
    """Codecs that a node codes with towards its parent, or decodes from the nodes below it."""
    needed = {OUTPUT_CODEC, EXACT_CODEC}
    for sender, levels in uplink_levels(plan).items():
        if sender == node or plan.nodes[sender].parent == node:
            needed |= {plan.codec(sender, level) for level in levels}
    return needed


def check_offer(plan: Plan, node: str, offered: Collection[str]) -> None:
    """Raises UnknownCodec naming node, codec and remedy where the Plan asks for a stage that the node lacks."""
    for token in sorted(needed_tokens(plan, node)):
        missing = [name for name in stage_names(token) if name not in offered]
        if missing:
            raise UnknownCodec(
                f"node {node!r} has no codec {', '.join(missing)}, which plan {plan.version} uses ({token}); "
                f"{_remedy(missing[0])}, or give that link another codec: tierline plan apply --set links.NODE=TOKEN"
            )


def _remedy(name: str) -> str:
    """What to do on the node that lacks a codec, as far as it can be told from here."""
    if name not in catalog.names("codec"):
        return "update tierline there"
    return _why_not(name) or "install its library there, or update tierline"


def _why_not(name: str) -> str:
    try:
        catalog.load("codec", name)
    except (MissingDependency, ConfigError) as error:
        return str(error)
    return ""
