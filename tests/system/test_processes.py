"""Processes over real gRPC: what must hold of a hierarchy of devices, an edge node and a cloud."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierline.core.bundle import Bundle
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.tls import serial_of
from tierline.core.plan import Join
from tierline.core.preprocess import Preprocessor
from tierline.core.telemetry.report import LatencyReport, residuals_ms

DEVICES = [f"device-{i}" for i in range(6)]
PAIR = (("view-0",), ("view-1",))
THREES = (("view-0", "view-1", "view-2"), ("view-3", "view-4", "view-5"))
LOGITS_BYTES, FEATURE_BYTES, FUSED_BYTES = 4 * 10, 8 * 16 // 8, 16 * 16 // 8
"""4 |C|; f o / 8 of a device with 8 filters of 4x4; the edge node's 16 filters of 4x4."""


def one_process(assets: Path, images: Any) -> tuple[list[str], list[int]]:
    """Exit and class of each sample by the same Bundle and engine without links; `images` per view."""
    bundle = Bundle.open(assets)
    assert bundle.manifest.calibration
    preprocess = Preprocessor(bundle.manifest.preprocess)
    views_NS = np.stack([preprocess.many(images[n], n) for n in range(6)])
    exits, index_S = Oracle(bundle, engine_maker("onnxruntime")).answers(
        views_NS, bundle.manifest.calibration.thresholds
    )
    return exits, index_S.tolist()


class Run:
    """One pass over all samples: every record and the last status."""

    def __init__(self, answers: dict[str, list[dict[str, Any]]], status: dict[str, Any]) -> None:
        self.answers, self.status = answers, status

    def exits(self, node: str) -> Counter[str]:
        counts = self.status[node]["counts"]
        return Counter({key[5:]: n for key, n in counts.items() if key.startswith("exit:")})


@pytest.fixture(scope="module")
def passed(start: Any, num_samples: int, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with start(tmp_path_factory.mktemp("passed")) as world:
        answers = world.until_answered(num_samples)

        def settled() -> Any:
            status = world.status()
            done = all(Run({}, status).exits(n).total() == num_samples for n in [*DEVICES, "edge"] if n in status)
            return status if done and len(status) == 8 else None

        status = world.until("counters of all nodes at the root", settled)
        world.read()
        return Run(answers, status)


def test_every_sample_is_answered_exactly_once_per_view(passed: Run, num_samples: int) -> None:
    for device, records in passed.answers.items():
        assert Counter(r["id"]["seq"] for r in records) == Counter(range(num_samples)), device
        assert {(r["num_views"], r["degraded"]) for r in records} == {(6, False)}
    together = zip(*(sorted(rs, key=lambda r: r["id"]["seq"]) for rs in passed.answers.values()), strict=True)
    for same in together:
        assert len({(str(r["id"]), r["index"], r["exit"], r["confidence"]) for r in same}) == 1


def test_predictions_equal_one_process(passed: Run, assets: Path) -> None:
    with np.load(assets / "samples.npz") as file:
        images, labels = file["images"], file["labels"]
    exits, index_S = one_process(assets, [images] * 6)
    records = sorted(passed.answers["device-0"], key=lambda r: r["id"]["seq"])
    assert [r["exit"] for r in records] == exits
    assert [r["index"] for r in records] == index_S
    assert [r["truth"] for r in records] == labels.tolist()
    assert len(set(exits)) == 3  # otherwise not every way was taken


def test_payload_bytes_are_the_formula(passed: Run, num_samples: int) -> None:
    status = passed.status
    num_hard = num_samples - passed.exits("edge")["local"]
    assert 0 < num_hard < num_samples
    for device in DEVICES:
        link = status[device]["links"]["parent"]
        assert status[device]["counts"]["pulled"] == num_hard
        assert passed.exits(device) == passed.exits("edge")
        # 4 |C| + (1 - l) f o / 8, times samples.
        assert link["sent_payload_bytes"] == num_samples * LOGITS_BYTES + num_hard * FEATURE_BYTES
        assert link["sent_by_codec"] == {"raw": num_samples * LOGITS_BYTES, "bitplane": num_hard * FEATURE_BYTES}
        assert link["received_payload_bytes"] == num_samples * LOGITS_BYTES
        other = status["edge"]["links"][device]
        for one, two in (("sent", "received"), ("received", "sent")):
            for kind in ("payload", "framing"):
                assert link[f"{one}_{kind}_bytes"] == other[f"{two}_{kind}_bytes"], (device, one, kind)
    escalated = passed.exits("edge")["cloud"]
    up = status["edge"]["links"]["parent"]
    assert (
        up["sent_payload_bytes"]
        == escalated * FUSED_BYTES
        == status["cloud"]["links"]["edge"]["received_payload_bytes"]
    )
    assert passed.exits("cloud") == {"cloud": escalated}


def test_the_ledger_adds_up(passed: Run) -> None:
    records = [r for rs in passed.answers.values() for r in rs]
    for r in records:
        tiers = ["device", "edge", "cloud"] if r["exit"] == "cloud" else ["device", "edge"]
        assert [hop["tier"] for hop in r["hops"]] == tiers
        assert all(ms >= 0 for hop in r["hops"] for ms in hop["spans_ms"].values())
        spent = sum(sum(hop["spans_ms"].values()) for hop in r["hops"])
        assert r["total_ms"] == pytest.approx(spent + sum(residuals_ms(r["hops"])), abs=1e-6)
        assert all(
            hop["residence_ms"] < below["residence_ms"] for below, hop in zip(r["hops"], r["hops"][1:], strict=False)
        )
    shares = LatencyReport.of(records).residual_share_p50
    assert set(shares) == {"device", "edge", "cloud"}
    assert all(abs(share) <= 0.05 for share in shares.values()), shares


def test_each_device_reads_its_own_view(start: Any, assets: Path, tmp_path: Path) -> None:
    """A file with an image per view: no device takes another's."""
    with np.load(assets / "samples.npz") as file:
        images, labels = file["images"][:60], file["labels"][:60]
    views = np.stack([np.roll(images, n, axis=0) for n in range(6)])
    np.savez(tmp_path / "views.npz", views=views.swapaxes(0, 1), labels=labels)
    exits, index_S = one_process(assets, views)
    with start(tmp_path, samples=tmp_path / "views.npz") as world:
        records = sorted(world.until_answered(60)["device-5"], key=lambda r: r["id"]["seq"])
    assert [(r["exit"], r["index"]) for r in records] == list(zip(exits, index_S, strict=True))


def exit_counts(start: Any, folder: Path, threshold: float, num: int) -> Counter[str]:
    knobs = {"local": threshold, "edge": threshold}
    with start(folder, hosts=THREES, query=f"?count={num}", thresholds=knobs, in_flight=8) as world:
        answers = world.until_answered(3 * num)
        assert {len(records) for records in answers.values()} == {3 * num}
        return Counter(r["exit"] for r in answers["device-0"])


def test_exit_share_grows_with_the_threshold(start: Any, tmp_path: Path) -> None:
    num = 60
    counts = {}
    for threshold in (0.0, 0.3, 0.7, 1.0):
        folder = tmp_path / str(threshold)
        folder.mkdir()
        counts[threshold] = exit_counts(start, folder, threshold, num)
    assert counts[0.0] == {"cloud": 3 * num}
    assert counts[1.0] == {"local": 3 * num}
    assert 0 < counts[0.3]["local"] <= counts[0.7]["local"] < 3 * num
    assert counts[0.3]["cloud"] >= counts[0.7]["cloud"]


# --- other ways to join, and certificates -------------------------------------------------------------------------


def test_join_by_trigger(start: Any, tmp_path: Path) -> None:
    with start(tmp_path, hosts=PAIR, query="?loop=true", join=Join("trigger", 5000.0, period_ms=20.0)) as world:
        answers = world.until_answered(40)
        assert {r["id"]["origin"] for rs in answers.values() for r in rs} == {"edge"}
        first, second = ({r["id"]["seq"]: r for r in answers[d]} for d in ("device-0", "device-1"))
        both = sorted(first.keys() & second.keys())
        assert len(both) >= 30
        assert {first[seq]["num_views"] for seq in both[2:-2]} == {2}


def test_join_by_none(start: Any, tmp_path: Path) -> None:
    with start(tmp_path, hosts=PAIR, query="?count=40", join=Join("none"), thresholds={"local": 0.3}) as world:
        answers = world.until_answered(40)
        for device, records in answers.items():
            assert Counter(r["id"]["seq"] for r in records) == Counter(range(40))
            assert {r["num_views"] for r in records} == {1}
            assert {r["id"]["origin"] for r in records} == {f"{device}:view-{device[-1]}"}
            assert not any(r["degraded"] for r in records)


@pytest.fixture(scope="module")
def secured(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with start(tmp_path_factory.mktemp("secured"), hosts=PAIR, query="?loop=true", tls=True) as world:
        world.until_answered(20)
        yield world


def test_a_fleet_with_certificates_works(secured: Any) -> None:
    assert {r["num_views"] for r in secured.news("device-0")} == {2}
    secured.until("status of all four", lambda: {"cloud", "edge", "device-0", "device-1"} == set(secured.status()))


@pytest.mark.parametrize("trusts_ours", [False, True], ids=["foreign authority", "foreign certificate only"])
def test_a_foreign_device_is_refused(
    secured: Any, command: Callable[..., Any], tmp_path: Path, trusts_ours: bool
) -> None:
    from tierline.cli.fleet_files import certify

    home = tmp_path / "state" / "device-0"
    for node in secured.fleet.spec.hierarchy.nodes:
        (tmp_path / "state" / node.id).mkdir(parents=True)
    certify(secured.fleet.spec.hierarchy, tmp_path)
    if trusts_ours:
        ours = secured.fleet.run_dir / "state" / "device-0" / "pki" / "ca.pem"
        (home / "pki" / "ca.pem").write_bytes(ours.read_bytes())
    mark = len(secured.news("device-1"))
    file = secured.fleet.run_dir / "device-0.toml"
    result = command("edge", "run", "-c", str(file), "--set", f"node.state_dir={home}", cwd=tmp_path)
    assert result.returncode == 11, result.stderr
    print(result.stderr)
    (line,) = result.stderr.splitlines()
    where = str(home / "pki" / "cert.pem") if trusts_ours else secured.fleet.address("edge")
    assert line.startswith(f"tierline: {where}: ")
    assert re.search("not signed by|authority", line)
    secured.until("the others go on", lambda: len(secured.news("device-1", mark)) >= 20)


def test_a_revoked_device_is_cut_off_by_its_edge_node(secured: Any) -> None:
    """The cloud keeps the list; the edge node, which the device is connected to, heeds it within two heartbeats."""
    from tierline.core.invite import InviteStore

    state = secured.fleet.run_dir / "state"
    serial = serial_of((state / "device-0" / "pki" / "cert.pem").read_bytes())
    store = InviteStore(state / "cloud")
    store.record("device-0", serial, (), time.time() + 86400.0)
    store.revoke("device-0")
    secured.until("the device's process ends", lambda: "device-0" not in secured.fleet.alive())
    assert "node 'device-0' was revoked" in secured.fleet.log("device-0").read_text()
    mark = len(secured.news("device-1"))
    secured.until("the other goes on", lambda: len(secured.news("device-1", mark)) >= 20)
