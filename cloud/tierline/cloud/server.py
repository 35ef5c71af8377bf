"""The cloud aggregator: `tierline cloud run -c cloud.toml`. The root of a hierarchy: it has the Bundle, makes the Plan,
admits nodes, runs the root Section in batches across all links, and always answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tierline.cloud.config import CloudConfig
from tierline.cloud.hierarchy import load_hierarchy
from tierline.core.bundle import Bundle
from tierline.core.flow.host import Host, engine_settings, own_version
from tierline.core.flow.node import new_epoch
from tierline.core.flow.whole import Whole
from tierline.core.invite import InviteStore
from tierline.core.link.open_inference import open_inference_handler
from tierline.core.plan import Plan, make_plan
from tierline.core.protocols import Outcome

LOG = logging.getLogger("tierline.cloud")

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
        if self._store is not None:
            self.host.desk.revoked = self._store.revoked_serials

    async def run(self, ready: Ready) -> None:
        """Serve until cancelled."""
        bundle, plan = load(self._config)
        self.host.node.adopt(plan, bundle)
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
            await asyncio.Event().wait()
        finally:
            if enrolment is not None:
                await enrolment.stop(0.5)
            await self.host.stop()


def load(config: CloudConfig) -> tuple[Bundle, Plan]:
    """The Bundle and the Plan that the configuration asks for."""
    bundle = Bundle.open(Path(config.bundle))
    hierarchy, join = load_hierarchy(Path(config.hierarchy))
    plan = make_plan(
        hierarchy,
        bundle.manifest,
        bundle.digest,
        thresholds=dict(config.plan.thresholds),
        join=join,
        mode=config.plan.mode,
        budget_ms=config.plan.budget_ms,
        max_batch=config.plan.max_batch,
    )
    return bundle, plan


def _no_views(outcome: Outcome) -> None:
    raise AssertionError(f"a cloud hosts no views, yet {outcome.view!r} was answered here")
