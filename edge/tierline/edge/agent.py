"""The agent of a device or an edge node: `tierline edge run -c agent.toml`. One program for both.

It joins its parent, takes the Plan and what it needs of the Bundle, captures, answers what it can and sends up what
it cannot. Without its parent it goes on with the last Plan and answers by its own exit, marked degraded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from tierline.core.bundle import Bundle
from tierline.core.errors import PlanError
from tierline.core.flow.host import Host, engine_settings, own_version
from tierline.core.flow.loaded import EngineSettings
from tierline.core.flow.negotiate import offered_codecs
from tierline.core.link.dial import Dialler
from tierline.core.link.fleet import Beat, Hello
from tierline.core.link.link import Link
from tierline.core.link.session import Session
from tierline.core.link.tasks import end
from tierline.core.link.tls import TlsFiles, channel_credentials, require_tls
from tierline.core.link.uplink import Uplink
from tierline.core.plan import Hierarchy, HierarchyNode, Join, Plan, make_plan
from tierline.core.protocols import Source
from tierline.core.types import Tier
from tierline.core.uri import open_sink, open_source
from tierline.edge.adopt import Adoption
from tierline.edge.bundles import BundleStore
from tierline.edge.cameras import Camera, Cameras
from tierline.edge.config import AgentConfig, SourceConfig
from tierline.edge.service import Access

if TYPE_CHECKING:
    from tierline.learning.fleet.learner import Learner

LOG = logging.getLogger("tierline.edge")

ALONE_AFTER_S = 1.0
"""A node that has run before waits so long for its parent before it answers alone."""

Ready = Callable[[dict[str, Any]], None]


async def run_agent(config: AgentConfig, ready: Ready) -> None:
    """Run until cancelled. `ready` is told once, when samples can be answered.

    Raises TierlineError for what the user can mend, and when the parent refuses this node for good.
    """
    await Agent(config).run(ready)


class Agent:
    """One running agent."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._id = config.node.id
        self._store = BundleStore(config.state_dir)
        self._given = Bundle.open(Path(config.bundle)) if config.bundle else None
        tls = config.tls_files()
        engine, access = engine_settings(config.engine), Access(self)
        self.host = Host(
            self._id,
            engine=engine,
            on_outcome=lambda outcome: self.cameras.outcome(outcome),
            listen=config.node.listen,
            metrics_listen=config.metrics.listen,
            tls=tls,
            insecure=config.node.insecure,
            access=access.handlers(),
        )
        self.node = self.host.node
        if self.host.listener is not None:
            _serve_open_protocol(self.host, access, engine)
        self.host.desk.revoked = self._store.revoked
        self.cameras = Cameras(
            self.node,
            [
                Camera(source.view, open_view(source, index), source.in_flight, source.budget_ms)
                for index, source in enumerate(config.source)
            ],
            [open_sink(sink.uri) for sink in config.sink],
        )
        self.host.metrics.dropped = self.cameras.dropped
        self._adoption = Adoption(self.host, self._store, self._given)
        self._learner = self._make_learner()
        self._dialler = self._make_dialler(tls) if config.node.parent else None
        if self._dialler is not None:
            self.host.desk.on_states = self._dialler.beat_now
            uplink = Uplink(self._id, self._dialler, self.node.clock)
            self.host.desk.profiler.parent = self.host.desk.sounding.parent = uplink
        self._connected = asyncio.Event()
        self._is_stopping = False

    async def run(self, ready: Ready) -> None:
        """Serve until cancelled."""
        await self.cameras.check()  # found now, also where the parent is away for long
        known = self._store.last() if self._given is None else None
        if self._dialler is None:
            assert self._given is not None, "load_agent asks for a Bundle where there is no parent"
            known = plan_alone(self._config, self._given), self._given
        dialling = asyncio.create_task(self._dialler.run()) if self._dialler is not None else None
        tasks = [dialling] if dialling is not None else []
        tasks += [asyncio.create_task(self._learner.run())] if self._learner is not None else []
        try:
            if dialling is not None:
                # A parent in reach knows the current Plan; the last one is for when there is none.
                await _first(self._connected.wait(), dialling, ALONE_AFTER_S if known is not None else None)
            if self.node.plan is None and known is not None:
                self.node.adopt(*known)
                LOG.info("no parent: answering alone with plan %d", known[0].version)
            self._check_views()
            self._take_columns()
            await self.cameras.open()
            ready(await self.host.start())
            tasks.append(asyncio.create_task(self.cameras.run()))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            self._is_stopping = True
            self._adoption.close()
            self.node.close()
            await end(tasks)
            await self.host.stop()

    def _make_learner(self) -> Learner | None:
        config = self._config
        if not config.learn.trainer and self.host.listener is None:
            return None  # it neither learns nor passes on what others learn, and does not carry it
        from tierline.learning.fleet.seat import make_learner

        return make_learner(config.learn, self.host, config.state_dir)

    # --- the link to the parent -------------------------------------------------------------------------------

    def _make_dialler(self, tls: TlsFiles | None) -> Dialler:
        node = self.node
        require_tls(self._config.node.parent, tls, self._config.node.insecure)
        credentials: grpc.ChannelCredentials | None = channel_credentials(tls) if tls is not None else None
        node.parent = Link(Session(self._id, node.epoch), node.clock, node.body)
        return Dialler(
            self._config.node.parent,
            node.parent,
            hello=self._hello,
            beat=self._beat,
            prepare=self._adoption.joined,
            on_change=self._on_change,
            on_order=self._adoption.take,
            on_revoked=self._store.remember_revoked,
            on_measure=self.host.desk.profiler.take,
            on_jobs=self._learner.take if self._learner is not None else lambda jobs: None,
            alongside=self._learner.stay_attached if self._learner is not None else None,
            credentials=credentials,
            tls=tls,
            rng=random.Random(f"{self._id}/{node.epoch}"),
        )

    def _hello(self) -> Hello:
        return Hello(
            node=self._id,
            tier=self.node.flow.placement.tier.value if self.node.flow is not None else "",
            epoch=self.node.epoch,
            views=tuple(source.view for source in self._config.source),
            bundle_digest=self._given.digest if self._given is not None else "",
            codecs=offered_codecs(),
            version=own_version(),
        )

    def _beat(self) -> Beat:
        assert self.node.parent is not None
        status = json.dumps(self.host.desk.status_record()).encode()
        return Beat(self._id, self.node.epoch, status, self.node.parent.rtt_ns / 1e6, self.host.desk.states())

    def _on_change(self, is_up: bool) -> None:
        if is_up:
            self._connected.set()
            LOG.info("connected to %s", self._config.node.parent)
        elif not self._is_stopping:
            LOG.warning("lost %s: answering alone until it is back", self._config.node.parent)
        self.node.parent_changed(is_up)

    def _take_columns(self) -> None:
        """Files that hold every view are read at the view of the Bundle that ours plays; the Plan says which."""
        node = self.node
        assert node.flow is not None and node.bundle is not None
        for index, source in enumerate(self._config.source):
            column = node.bundle.manifest.views.index(node.flow.placement.views[source.view])
            if column != index:
                self.cameras.replace(source.view, open_view(source, column))

    def _check_views(self) -> None:
        plan, config = self.node.plan, self._config
        assert plan is not None
        placed = set(plan.placement(self._id).views)
        idle = placed - {source.view for source in config.source} if config.source else set()
        if idle:
            LOG.warning("plan %d places view %s here, agent.toml has no source for it", plan.version, ", ".join(idle))
            self.node.ignore(idle)
        for source in config.source:
            if source.view not in placed:
                raise PlanError(
                    f"source.view = {source.view!r}: plan {plan.version} places "
                    f"{', '.join(sorted(placed)) or 'no view'} at {self._id!r}; change the agent file or the hierarchy"
                )


def plan_alone(config: AgentConfig, bundle: Bundle) -> Plan:
    """Without a parent this node is the whole hierarchy: it hosts every view and runs every Section.

    Raises PlanError where its views are not the Bundle's.
    """
    views = tuple(source.view for source in config.source)
    alone = Hierarchy((HierarchyNode(config.node.id, Tier.EDGE, "", views),))
    return make_plan(alone, bundle.manifest, bundle.digest, join=Join(by="sequence"))


def _serve_open_protocol(host: Host, access: Access, engine: EngineSettings) -> None:
    # Imported here: a device that does not listen does not carry it.
    from tierline.core.flow.whole import Whole
    from tierline.core.link.open_inference import open_inference_handler
    from tierline.edge.open_model import OpenModel

    assert host.listener is not None
    model = OpenModel(host.node, access, Whole(host.node, engine))
    host.listener.server.add_generic_rpc_handlers((open_inference_handler(model, own_version()),))


def open_view(source: SourceConfig, column: int) -> Source:
    """The source of one view, not started; `column` is the view's in files that hold every view."""
    return open_source(source.uri, source.view, column, queue=source.queue if _is_live(source.uri) else None)


def _is_live(uri: str) -> bool:
    """Whether frames come by themselves, so that a queue is a choice; files and data sets wait."""
    return uri.partition(":")[0] in ("video", "rtsp", "gst")


async def _first(waiting: Any, task: asyncio.Task[None] | None, timeout_s: float | None) -> None:
    """Wait for `waiting`, but not past the end of `task`, whose exception then passes through."""
    waiter = asyncio.ensure_future(waiting)
    watched = {waiter, task} if task is not None else {waiter}
    try:
        done, _ = await asyncio.wait(watched, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task is not None and task in done:
            task.result()
    finally:
        waiter.cancel()
