"""The jobs of a fleet, at its root: one learns at a time, in the order in which they were submitted.

The job that is under way is told to the nodes below as a Notice; they learn, and report every turn. Here reports become
measurements. All of it is in the store before anybody counts on it, so a root that ends goes on when it is back.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tierline.cloud.job_store import JobReports, JobStore
from tierline.core.arrays import Params
from tierline.core.config.sections import Learn
from tierline.core.errors import BadFrame, ConfigError, NodeFailed, PeerRejected, TierlineError
from tierline.core.flow.host import Host
from tierline.core.link.fleet import DEAD_AFTER_BEATS, HEARTBEAT_S
from tierline.core.link.jobs import Row, jobs_handler
from tierline.core.link.learning_wire import content_from_bytes
from tierline.core.link.letters import Letter
from tierline.core.link.tasks import end
from tierline.core.telemetry.environment import environment
from tierline.learning.driver.link import MODEL, REPORT
from tierline.learning.experiment.file import Experiment
from tierline.learning.experiment.measure import Due, Measuring
from tierline.learning.experiment.scene import Scene, compose
from tierline.learning.fleet.job import NO_FOLDER, Job, one_line, read_request, seats_for
from tierline.learning.fleet.learner import notice_of
from tierline.learning.fleet.seat import load_trainer, make_learner

LOG = logging.getLogger("tierline.learning")

_LOOK_S = 1.0
"""How often nodes are looked at for what went wrong."""
_OLD_S = HEARTBEAT_S * DEAD_AFTER_BEATS
"""What nodes said of a job may be about an earlier attempt for so long."""
_LETTER_MODELS = 16
"""Longest letter in models: sums are twice as wide, and rules send several vectors at once."""
_NUM_ENDED = 32
"""Runs that nodes are told to forget: the last."""


class Jobs:
    """Implements `JobDesk`, and the Clerk of the root's Learner."""

    def __init__(self, learn: Learn, host: Host, state_dir: Path) -> None:
        self._learn, self._host = learn, host
        self._store = JobStore(state_dir / "learning" / "jobs.sqlite")
        self._learner = make_learner(learn, host, state_dir, self)
        self._changed, self._environment = asyncio.Event(), environment()
        self._reports: JobReports | None = None
        self._measuring: Measuring | None = None
        self._stage: Scene | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        if host.listener is not None:
            handler = jobs_handler(self, host.listener.check_operator)
            host.listener.server.add_generic_rpc_handlers((handler,))

    async def run(self) -> None:
        """Work the queue off, until cancelled."""
        self._loop = asyncio.get_running_loop()
        learning = asyncio.create_task(self._learner.run())
        try:
            while True:
                waiting = self._store.ids("running") or self._store.ids("waiting")
                if not waiting:
                    self._tell(None)
                    await self._changed.wait()
                    self._changed.clear()
                    continue
                await self._see_through(waiting[0])
        finally:
            await end([learning])
            self._store.close()

    # --- what programs ask ------------------------------------------------------------------------------------

    async def submit(self, document: Mapping[str, Any]) -> Row:
        experiment, arm_id, seed = read_request(document)
        open_population, plan = load_trainer(self._learn), self._host.node.plan
        assert open_population is not None and plan is not None  # only a cloud that learns serves jobs
        draft = Job(0, "", experiment, arm_id, seed, {}, 0)
        arm, setting = draft.its_arm, draft.setting
        able = {
            name: bool(record.get("learning", {}).get("trainer"))
            for name, record in self._host.desk.status_record().items()
            if isinstance(record.get("learning", {}), dict)
        }
        seats = seats_for(setting, arm, experiment.fleet.nodes, list(plan.nodes), able, self._host.node.id)
        stage = await asyncio.to_thread(
            compose, arm, setting, seed, NO_FOLDER, lambda workers: open_population(setting, seed, workers, [])
        )
        longest = _LETTER_MODELS * stage.population.start.flat.nbytes + (1 << 20)
        stamp = f"{time.time_ns():x}"
        job = self._store.add(
            lambda id_: Job(id_, f"{id_}/{arm_id}/seed {seed}/{stamp}", experiment, arm_id, seed, seats, longest)
        )
        LOG.info("job %d: %s, arm %s, seed %d", job.id, experiment.name, arm_id, seed)
        self._changed.set()
        return self._row(job.id)

    async def change(self, job: int, verb: str) -> Row:
        status = self._store.job(job)[1]
        may = {"stop": ("waiting", "running"), "resume": ("stopped", "failed")}
        if verb not in may:
            raise ConfigError(f"job {job}: cannot {verb!r}; stop or resume it")
        if status not in may[verb]:
            raise PeerRejected(f"job {job} is {status}: there is nothing to {verb}")
        self._store.set(job, "stopped" if verb == "stop" else "waiting")
        self._changed.set()
        return self._row(job)

    def jobs(self) -> list[Row]:
        return [self._row(id_) for id_ in self._store.ids()]

    def log(self, job: int, after: int) -> list[Row]:
        self._store.job(job)
        rows = self._store.metrics(job, after)
        return [{"round": round, "metric": metric, "value": value} for round, metric, value in rows]

    def model(self, job: int, round: int) -> bytes:
        self._store.job(job)
        _, layout, flat = self._store.version(job, round)
        params = Params(tuple((name, tuple(shape)) for name, shape in layout), flat)
        raw = io.BytesIO()
        np.savez(raw, **dict(params.items()))  # type: ignore[arg-type]
        return raw.getvalue()

    def _row(self, id_: int) -> Row:
        job, status, error, submitted_at, ended_at = self._store.job(id_)
        rows, room = self._store.metrics(id_), job.its_arm.rule
        return {
            "job": id_,
            "experiment": job.experiment.name,
            "arm": job.arm,
            "seed": job.seed,
            "status": status,
            "round": rows[-1][0] if rows else 0,
            "rounds": job.setting.train.rounds,
            "metrics": {metric: value for _, metric, value in rows},
            "error": error,
            "nodes": sorted(set(job.seats.values())),
            "submitted_at": submitted_at,
            "ended_at": ended_at,
            room[0]: room[1],
            "setting": msgspec.to_builtins(job.setting),
            "environment": self._environment,
        }

    # --- the Clerk --------------------------------------------------------------------------------------------

    def opened(self, job: Job, stage: Scene) -> None:
        self._reports, self._stage = JobReports(self._store, job.id), stage
        self._measuring = Measuring(stage, job.experiment.measure, [self._reports])
        self._changed.set()

    def report(self, job: Job, letter: Letter) -> None:
        content = content_from_bytes(letter.content)
        document, model = content.arrays.get(REPORT), content.arrays.get(MODEL)
        assert self._stage is not None and self._reports is not None
        text = b"" if document is None else document.tobytes()
        if letter.head.sender not in job.seats or not _is_report(text):
            raise BadFrame(f"{letter.head}: no report")
        shape = self._stage.population.start.flat.shape
        if model is not None and (model.dtype != np.float32 or model.shape != shape):
            raise BadFrame(f"{letter.head}: a model of another shape")
        raw = None if model is None else model.tobytes()
        self._reports.add(letter.head.sender, letter.head.round + 1, text.decode(), raw)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._changed.set)

    # --- one job ----------------------------------------------------------------------------------------------

    def _tell(self, job: Job | None) -> None:
        ended = [self._store.job(id_)[0].run for id_ in self._store.ids("complete")[-_NUM_ENDED:]]
        self._learner.take(notice_of(job, ended))

    async def _see_through(self, id_: int) -> None:
        job = self._store.job(id_)[0]
        self._measuring, began = None, time.monotonic()
        self._store.set(id_, "running")
        self._tell(job)
        noted = self._store.metrics(id_)
        measured = noted[-1][0] if noted else -1
        while self._store.job(id_)[1] == "running":
            try:
                self._check(job, with_nodes=time.monotonic() - began > _OLD_S)
                due = self._measuring.next() if self._measuring is not None else None
                if due is not None and due.round > measured:
                    await self._measure(job, due)
                if self._measuring is not None and self._measuring.is_done:
                    self._store.set(id_, "complete")
                    LOG.info("job %d is complete", id_)
            except Exception as error:  # of a job; the cloud goes on answering samples
                self._store.set(id_, "failed", one_line(error))
                LOG.error("job %d failed: %s", id_, one_line(error), exc_info=not isinstance(error, TierlineError))
            else:
                if due is None and self._store.job(id_)[1] == "running":
                    await self._wait()
        self._measuring = None
        self._tell(None)
        await self._learner.idle()

    async def _measure(self, job: Job, due: Due) -> None:
        measuring, stage = self._measuring, self._stage
        assert measuring is not None and stage is not None
        rows = await self._learner.compute(lambda: measuring.read(due))
        if self._store.job(job.id)[1] == "running":
            model = stage.model_of(due.models)
            await asyncio.to_thread(self._store.note, job.id, rows, model.layout, model.flat)

    def _check(self, job: Job, *, with_nodes: bool) -> None:
        """Raises what a node of the job failed with."""
        records: Mapping[str, Any] = self._host.desk.status_record()
        nodes = sorted(set(job.seats.values())) if with_nodes else []
        for node in dict.fromkeys([self._host.node.id, *nodes]):
            said = records.get(node, {}).get("learning")
            if isinstance(said, dict) and said.get("job") == job.id and said.get("error"):
                raise NodeFailed(f"{node}: {said['error']}")

    async def _wait(self) -> None:
        waiter = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait((waiter,), timeout=_LOOK_S)
        waiter.cancel()
        self._changed.clear()


def _is_report(text: bytes) -> bool:
    try:
        document = json.loads(text)
        losses = [(float(loss), int(num_samples)) for loss, num_samples in document["losses"]]
        return all(num >= 0 for _, num in losses) and all(
            isinstance(document[key], int) for key in ("num_messages", "num_bytes")
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def request_of(experiment: Experiment, arm: str, seed: int) -> dict[str, Any]:
    """What `submit` takes."""
    return {"experiment": msgspec.to_builtins(experiment), "arm": arm, "seed": seed}
