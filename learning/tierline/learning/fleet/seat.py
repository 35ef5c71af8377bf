"""Makes the Learner of an agent or a cloud, and gives it its place in the Host."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from tierline.core.config.sections import Learn
from tierline.core.errors import MissingDependency
from tierline.core.flow.host import Host
from tierline.learning.fleet.learner import Clerk, Learner, OpenPopulation

_TRAINERS = {"torch": "tierline.models.train.node"}
"""Module by `[learn] trainer`. It is imported by name, and only where a configuration asks for it: nodes that do not
learn need no framework."""


def make_learner(learn: Learn, host: Host, state_dir: Path, clerk: Clerk | None = None) -> Learner:
    """Raises as `load_trainer` does."""

    def covers(above: str, node: str) -> bool:
        plan = host.node.plan
        while plan is not None and node in plan.nodes:
            if node == above:
                return True
            node = plan.nodes[node].parent
        return False

    learner = Learner(
        host.node.id,
        host.clock,
        state_dir / "learning",
        covers=covers,
        trainer=learn.trainer,
        population=load_trainer(learn),
        clerk=clerk,
        database=learn.state,
    )
    host.desk.jobs, host.desk.learning = learner.jobs, learner.status
    if host.listener is not None:
        host.listener.server.add_generic_rpc_handlers((learner.handler(host.listener.check_child),))
    return learner


def load_trainer(learn: Learn) -> OpenPopulation | None:
    """None where this node does not learn. Raises MissingDependency, and DataError for data that is not there."""
    if not learn.trainer:
        return None
    try:
        module = importlib.import_module(_TRAINERS[learn.trainer])
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"learn.trainer = {learn.trainer!r} needs the Python package {error.name!r}: "
            "pip install 'tierline[train]', or leave [learn] out"
        ) from error
    module.check_data(learn.data)
    return functools.partial(module.open_population, learn.data)
