"""The cloud aggregator: `tierline cloud run -c cloud.toml`. The root of a hierarchy: it has the Bundle, makes the Plan,
admits nodes, runs the root Section in batches across all links, and always answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tierline.cloud.config import CloudConfig
from tierline.cloud.hierarchy import HierarchyFile, load_file
from tierline.cloud.plans import PlanStore, Tuned, by_hand, has_choice
from tierline.cloud.retune import Retuner
from tierline.cloud.shelf import Shelf
from tierline.cloud.survey import Survey
from tierline.cloud.switch import Switcher
from tierline.cloud.tuner.job import planned_in
from tierline.cloud.tuner.tuning import tuning_in
from tierline.cloud.tunings import Tunings
from tierline.core.bundle import Bundle
from tierline.core.config import Loaded
from tierline.core.errors import PlanError
from tierline.core.flow.host import Host, engine_settings, own_version
from tierline.core.flow.knobs import with_knobs
from tierline.core.flow.node import new_epoch
from tierline.core.flow.whole import Whole
from tierline.core.invite import InviteStore
from tierline.core.link.fleet import Order
from tierline.core.link.open_inference import open_inference_handler
from tierline.core.link.tasks import together
from tierline.core.plan import Hierarchy, Placement, Plan, make_plan
from tierline.core.protocols import Outcome
from tierline.core.types import FLOAT32

if TYPE_CHECKING:
    from tierline.cloud.jobs import Jobs

LOG = logging.getLogger("tierline.cloud")
LOOK_S = 1.0
"""Between two looks at what nodes measure."""

Ready = Callable[[dict[str, Any]], None]


async def run_cloud(config: CloudConfig, ready: Ready) -> None:
    """Serve until cancelled. `ready` is told once, when nodes can join.

    Raises TierlineError for what the user can mend.
    """
    await Server(config).run(ready)


class Server:
    """One running cloud."""

    def __init__(self, config: CloudConfig) -> None:
        self._config = config
        tls = config.tls_files()
        self._store = InviteStore(config.state_dir) if tls is not None else None
        engine = engine_settings(config.engine)
        self.host = Host(
            config.node.id,
            engine=engine,
            on_outcome=_no_views,
            listen=config.node.listen,
            metrics_listen=config.metrics.listen,
            tls=tls,
            insecure=config.node.insecure,
            run=f"{config.node.id}-{new_epoch():x}",
        )
        assert self.host.listener is not None
        model = open_inference_handler(Whole(self.host.node, engine), own_version())
        self.host.listener.server.add_generic_rpc_handlers((model,))
        self._tls = tls
        self._shelf, self._tunings = Shelf(config.state_dir), Tunings(config.state_dir)
        self._plans = PlanStore(config.state_dir, self._shelf)
        self.host.desk.surveyor = Survey(self.host.desk)
        self._jobs = _make_jobs(config, self.host) if config.learn.trainer else None
        if self._store is not None:
            self.host.desk.revoked = self._store.revoked_serials

    async def run(self, ready: Ready) -> None:
        """Serve until cancelled."""
        config, file = self._config, load_file(Path(self._config.hierarchy))
        bundle, made, hierarchy = load(config)
        tuned = None
        if made.valid:
            tuning = tuning_in(Path(file.locate("tuned", file.value.tuned)))
            tuned = Tuned(self._tunings.keep(tuning), tuning.choice)
        plan = self._plans.start(made, bundle, tuned)
        self.host.node.adopt(plan, self._plans.bundle())
        self._plans.attach(self.host.desk.check_offers, self._use)
        switcher = Switcher(self._plans, self._shelf, self.host, hierarchy, self._tunings)
        self.host.desk.planner = switcher
        retuner = Retuner(
            config.drift,
            file.value.goal,
            self._plans,
            switcher,
            self._shelf,
            self._tunings,
            hierarchy,
            config.state_dir,
        )
        self.host.desk.tuning = retuner.record
        enrolment: Any = None
        try:
            line = await self.host.start()
            if self._config.enrol.listen and self._tls is not None and self._store is not None:
                # Only a cloud that enrols nodes pays for the certificate library.
                from tierline.cloud.enrol import EnrolmentService, start_enrolment
                from tierline.cloud.init import open_authority

                service = EnrolmentService(self._store, open_authority(self._config.state_dir))
                enrolment, port = await start_enrolment(self._config.enrol.listen, self._tls, service)
                line["enrol"] = f"{self._config.enrol.listen.rpartition(':')[0]}:{port}"
            LOG.info("plan %d of %s for %d nodes", plan.version, plan.model, len(plan.nodes))
            ready(line)
            await together([self._watch(retuner), *([self._jobs.run()] if self._jobs is not None else [])])
        finally:
            await retuner.close()
            if enrolment is not None:
                await enrolment.stop(0.5)
            await self.host.stop()

    async def _watch(self, retuner: Retuner) -> None:
        """Until cancelled: compare what nodes measure with what the Plan was chosen for."""
        while True:
            await asyncio.sleep(LOOK_S)
            if retuner.is_watching():
                retuner.look(self.host.clock.now_ns() / 1e9, self.host.desk.status_record())

    def _use(self, plan: Plan) -> None:
        """Other knobs: here at once, at every node below with the next heartbeat of each link on its way."""
        self.host.node.adopt(plan, self._plans.bundle())
        if self.host.listener is not None:
            self.host.listener.push(Order("knobs", plan.document()))
        LOG.info("plan %d: codecs %s", plan.version, ", ".join([*plan.codecs[:-1], *plan.links.values()]))


def load(config: CloudConfig) -> tuple[Bundle, Plan, Hierarchy]:
    """The Bundle and the Plan that the configuration asks for, and who exists."""
    bundle, file = Bundle.open(Path(config.bundle)), load_file(Path(config.hierarchy))
    hierarchy = file.value.hierarchy()
    plan = make_plan(hierarchy, bundle.manifest, bundle.digest, join=file.value.join)
    if file.value.tuned:
        plan = _as_tuned(plan, file)
    made = with_knobs(plan, bundle.manifest, config.plan, plan.version)
    return bundle, made if has_choice(made, plan) else by_hand(made), hierarchy


def _as_tuned(plan: Plan, file: Loaded[HierarchyFile]) -> Plan:
    """With what was chosen for it. Raises PlanError where that was another Bundle or other nodes."""
    folder = Path(file.locate("tuned", file.value.tuned))
    chosen = planned_in(folder)
    if (chosen.bundle, _placed(chosen)) != (plan.bundle, _placed(plan)):
        raise PlanError(
            f"{file.path.name}: tuned = {file.value.tuned!r}: the Plan there is for another Bundle or for other nodes; "
            "tune again, or take the key away"
        )
    nodes = {name: own if own != _placed(plan)[name] else chosen.nodes[name] for name, own in plan.nodes.items()}
    return msgspec.structs.replace(
        plan, nodes=nodes, thresholds=chosen.thresholds, codecs=chosen.codecs, valid=chosen.valid
    )


def _placed(plan: Plan) -> dict[str, Placement]:
    """Who does what, whatever it runs on and is computed in."""
    return {name: msgspec.structs.replace(p, engine="", precision=FLOAT32) for name, p in plan.nodes.items()}


def _make_jobs(config: CloudConfig, host: Host) -> Jobs:
    from tierline.cloud.jobs import Jobs  # imported here: most clouds do not learn

    return Jobs(config.learn, host, config.state_dir)


def _no_views(outcome: Outcome) -> None:
    raise AssertionError(f"a cloud hosts no views, yet {outcome.view!r} was answered here")
