"""Jobs of a fleet: who plays whom, what nodes are told, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tierline.core.errors import BadFrame, ConfigError, NodeFailed
from tierline.learning.experiment.file import Experiment, parse
from tierline.learning.fleet.job import (
    Job,
    Notice,
    check_portable,
    notice_from_bytes,
    notice_to_bytes,
    read_request,
    seats_for,
)

NODES = ["cloud", "edge", "a", "b", "c"]


def experiment(**tables: Any) -> Experiment:
    table = {
        "schema": 1,
        "name": "x",
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "train": {"num_workers": 5, "rounds": 2, "optimizer": {"lr": 0.25}},
        "arm": [
            {"id": "one", "strategy": {"name": "fedavg", "share": 1.0}},
            {"id": "two", "gossip": {"name": "d_psgd"}},
        ],
        **tables,
    }
    return parse(table, "test")


def job(what: Experiment) -> Job:
    return Job(3, "3/one", what, "one", 0, {"server": "cloud", "worker-0": "a"}, 1 << 20)


def seats(arm: str, named: list[str] | None = None, able: dict[str, bool] | None = None) -> dict[str, str]:
    it = Job(0, "", experiment(), arm, 0, {}, 0)
    able = {"cloud": True, "edge": False, "a": True, "c": True} if able is None else able
    return seats_for(it.setting, it.its_arm, named or [], NODES, able, "cloud")


def test_workers_are_dealt_round_to_those_that_can_learn() -> None:
    dealt = {f"worker-{i}": ["a", "c"][i % 2] for i in range(5)}
    assert seats("one") == {"server": "cloud", **dealt}
    assert seats("two") == dealt
    assert set(seats("two", ["b", "cloud"]).values()) == {"b", "cloud"}  # b has not spoken yet


def test_who_cannot_learn_is_named() -> None:
    with pytest.raises(NodeFailed, match=r"no node can learn; write \[learn\]"):
        seats("one", able={"cloud": True})
    with pytest.raises(NodeFailed, match="node 'edge' cannot learn"):
        seats("one", ["edge"])
    with pytest.raises(ConfigError, match="no node 'd'; it has cloud, edge, a, b, c"):
        seats("one", ["d"])


def test_a_notice_comes_back_as_it_was() -> None:
    notice = Notice(job(experiment()), ("1/x", "2/y"))
    found = notice_from_bytes(notice_to_bytes(notice))
    assert found == notice and found.job is not None
    assert found.job.setting.train.optimizer.lr == 0.25
    assert isinstance(found.job.its_arm.rule[1]["share"], float)
    with pytest.raises(BadFrame, match=r"jobs: .*matching versions"):
        notice_from_bytes(b'{"job": 1}')


FILES: list[dict[str, Any]] = [
    {"data": {"name": "../secret"}},
    {"data": {"name": "digits", "partition": {"name": "mine.py"}}},
    {"model": {"name": "/tmp/model.py"}},
    {"arm": [{"id": "one", "strategy": {"name": "mine.py"}}]},
    {"arm": [{"id": "one", "gossip": {"name": "choco", "compressor": "./evil.py"}}]},
    {"arm": [{"id": "one", "gossip": {"name": "d_psgd"}, "topology": {"name": "~/t"}}]},
    {"arm": [{"id": "one", "gossip": {"name": "x", "more": [{"name": "evil.py"}]}}]},
]


def test_tokens_are_no_files() -> None:
    check_portable(experiment(arm=[{"id": "one", "gossip": {"name": "choco", "compressor": "topk:0.01"}}]), "one")


@pytest.mark.parametrize("tables", FILES)
def test_a_peer_names_no_file(tables: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a fleet runs what comes with tierline"):
        check_portable(experiment(**tables), "one")
    with pytest.raises(ConfigError, match="a fleet runs what comes with tierline"):
        notice_from_bytes(notice_to_bytes(Notice(job(experiment(**tables)))))


def test_a_request_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="needs an experiment, the id of an arm, and a seed"):
        read_request({"arm": "one"})
    with pytest.raises(ConfigError, match="world: only simulated"):
        check_portable(experiment(world={"compute_s": 1.0}), "one")
    with pytest.raises(ConfigError, match="no arm 'three'"):
        check_portable(experiment(), "three")
