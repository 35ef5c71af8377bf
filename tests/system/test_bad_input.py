"""Mistakes and hostile peers against real processes: one line, a documented exit code, and the others go on."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tierline.core import errors
from tierline.core.link.fleet import PROTOCOL
from tierline.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, tensor_pb2

EXIT_CODES = Path(__file__).parents[2] / "docs" / "exit-codes.md"
UNLIMITED = (("grpc.max_send_message_length", -1),)
EXCHANGE = "/tierline.v1.Inference/Exchange"

AGENT = """schema = 1
[node]
id = "{id}"
parent = "{parent}"
state_dir = "state"
[[source]]
view = "{view}"
uri = "{uri}"
"""

CLOUD = """schema = 1
hierarchy = "hierarchy.toml"
bundle = "{bundle}"
[node]
id = "cloud"
listen = "{listen}"
state_dir = "state"
"""

HIERARCHY = """schema = 1
name = "bad"
model = "{bundle}"
[[node]]
id = "cloud"
tier = "cloud"
[[node]]
id = "edge"
tier = "edge"
parent = "cloud"
views = [{views}]
[up]
source = "dataset:samples.npz"
"""
VIEWS = ", ".join(f'"view-{i}"' for i in range(6))


@pytest.fixture(scope="module")
def live(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cloud, an edge node, one busy device, and room below the edge node for `device-1` and its `view-1`."""
    folder = tmp_path_factory.mktemp("live")
    with start(folder, hosts=(("view-0",), ("view-1",)), query="?loop=true&rate=100") as world:
        world.until_answered(5)
        world.fleet.kill("device-1")
        yield world


@pytest.fixture
def undisturbed(live: Any) -> Iterator[None]:
    """Whatever happens in the test, the other device keeps its connection and its whole answers."""
    before = len(live.news("device-0"))
    pids = live.fleet.pids()
    yield
    mark = len(live.news("device-0"))
    live.until("answers of the other device", lambda: len(live.news("device-0", mark)) >= 10)
    assert not [r for r in live.news("device-0", before) if r["degraded"]]
    assert live.fleet.pids() == pids


@pytest.fixture
def folder(tmp_path: Path, live: Any, assets: Path) -> Path:
    """Files of one good agent, one good cloud and one good hierarchy, for tests to spoil."""
    good = {"id": "device-1", "parent": live.fleet.address("edge"), "view": "view-1", "uri": "dataset:samples.npz"}
    shutil.copy(assets / "samples.npz", tmp_path)
    shutil.copytree(assets, tmp_path / "bundle")
    (tmp_path / "agent.toml").write_text(AGENT.format(**good))
    (tmp_path / "cloud.toml").write_text(CLOUD.format(bundle="bundle", listen="127.0.0.1:0"))
    (tmp_path / "hierarchy.toml").write_text(HIERARCHY.format(bundle="bundle", views=VIEWS))
    return tmp_path


def corrupt_agent(folder: Path, live: Any) -> None:
    (folder / "agent.toml").write_text("schema = 1\nnode = = 2\n")


def truncated_agent(folder: Path, live: Any) -> None:
    (folder / "agent.toml").write_bytes(b'schema = 1\n[node]\nid = "\xff\xfe')


def corrupt_hierarchy(folder: Path, live: Any) -> None:
    (folder / "hierarchy.toml").write_text('schema = 1\nname = "x\n')


def other_bundle(folder: Path, live: Any) -> None:
    manifest = folder / "bundle" / "bundle.json"
    content = json.loads(manifest.read_text())
    content["origin"]["command"] = "another training"
    manifest.write_text(json.dumps(content))


def broken_section(folder: Path, live: Any) -> None:
    (folder / "bundle" / "cloud.onnx").write_bytes(b"no model")


def broken_manifest(folder: Path, live: Any) -> None:
    manifest = folder / "bundle" / "bundle.json"
    manifest.write_bytes(manifest.read_bytes()[:200])


def newer_bundle(folder: Path, live: Any) -> None:
    manifest = folder / "bundle" / "bundle.json"
    manifest.write_text(re.sub(r'"schema": ?1', '"schema": 99', manifest.read_text(), count=1))


def no_samples(folder: Path, live: Any) -> None:
    (folder / "samples.npz").unlink()


def broken_samples(folder: Path, live: Any) -> None:
    (folder / "samples.npz").write_bytes((folder / "samples.npz").read_bytes()[:1000])


def float_samples(folder: Path, live: Any) -> None:
    np.savez(folder / "samples.npz", images=np.zeros((4, 8, 8), np.float32))


def nothing(folder: Path, live: Any) -> None:
    pass


RUN = ["edge", "run", "-c", "agent.toml"]
SERVE = ["cloud", "run", "-c", "cloud.toml"]
UP = ["up", "hierarchy.toml", "--run-dir", "run"]

BAD: dict[str, tuple[Callable[[Path, Any], None], list[str], type[errors.TierlineError], str]] = {
    "corrupt agent file": (corrupt_agent, RUN, errors.ConfigError, r"agent\.toml: not TOML: .*line 2"),
    "agent file that is no text": (truncated_agent, RUN, errors.ConfigError, r"agent\.toml: byte 24 is not UTF-8"),
    "corrupt hierarchy": (corrupt_hierarchy, SERVE, errors.ConfigError, r"hierarchy\.toml: not TOML: .*line 2"),
    "corrupt hierarchy, up": (corrupt_hierarchy, UP, errors.ConfigError, r"hierarchy\.toml: not TOML: .*line 2"),
    "unknown key": (
        nothing,
        [*RUN, "--set", "node.parnet=x"],
        errors.ConfigError,
        r'node\.parnet: .*nearest is "parent"',
    ),
    "unknown key, cloud": (
        nothing,
        [*SERVE, "--set", "plan.mod=x"],
        errors.ConfigError,
        r'plan\.mod: .*nearest is "mode"',
    ),
    "threshold out of range": (
        nothing,
        [*SERVE, "--set", "plan.thresholds.local=2"],
        errors.ConfigError,
        r"thresholds",
    ),
    "no such exit": (
        nothing,
        [*SERVE, "--set", "plan.thresholds.lokal=0.5"],
        errors.PlanError,
        r"'lokal'.* local, edge",
    ),
    "wrong Bundle digest": (
        other_bundle,
        [*RUN, "--set", "bundle=bundle"],
        errors.DigestMismatch,
        r"'device-1' has Bundle \w+\.\.\., 'edge' runs \w+\.\.\. \(digits@1\); remove `bundle`",
    ),
    "damaged Section": (broken_section, SERVE, errors.BundleError, r"cloud\.onnx"),
    "damaged manifest": (broken_manifest, SERVE, errors.BundleError, r"bundle\.json"),
    "newer Bundle": (newer_bundle, SERVE, errors.BundleError, r"schema 99, this version reads schema 1"),
    "missing Bundle": (nothing, [*SERVE, "--set", "bundle=none"], errors.BundleError, r"none"),
    "missing Bundle, agent": (nothing, [*RUN, "--set", "bundle=none"], errors.BundleError, r"none"),
    "missing Bundle, up": (nothing, [*UP, "--set", "model=none"], errors.ConfigError, r"model = 'none': no Bundle at"),
    "missing data": (no_samples, RUN, errors.DataError, r"samples\.npz: no such file"),
    "missing data, up": (no_samples, UP, errors.NodeFailed, r"'edge' .*samples\.npz: no such file.*see .*edge\.log"),
    "damaged data": (broken_samples, RUN, errors.DataError, r"samples\.npz: not a readable \.npz file"),
    "data of another dtype": (float_samples, RUN, errors.DataError, r"must be uint8 .* these are float32\[8, 8\]"),
    "view not in the plan": (
        lambda folder, live: (folder / "agent.toml").write_text(
            (folder / "agent.toml").read_text().replace('"view-1"', '"view-9"')
        ),
        RUN,
        errors.PlanError,
        r"source\.view = 'view-9': plan 1 places view-1 at 'device-1'; change the agent file or the hierarchy",
    ),
    "unknown node": (
        nothing,
        [*RUN, "--set", "node.id=device-7"],
        errors.PeerRejected,
        r"answered: plan 1 places no node 'device-7' below 'edge' \(it places device-0, device-1\)",
    ),
    "too many views": (
        lambda folder, live: (folder / "hierarchy.toml").write_text(
            HIERARCHY.format(bundle="bundle", views=VIEWS + ', "view-6"')
        ),
        SERVE,
        errors.PlanError,
        r"7 views meet at 'edge', but Bundle 'digits' takes 6",
    ),
    "an address beyond this machine, agent": (
        nothing,
        [*RUN, "--set", "node.parent=192.0.2.1:7443"],
        errors.SecurityError,
        r"192\.0\.2\.1.*(TLS|certificate)",
    ),
    "an address beyond this machine, cloud": (
        nothing,
        [*SERVE, "--set", "node.listen=0.0.0.0:7443"],
        errors.SecurityError,
        r"0\.0\.0\.0.*(TLS|certificate)",
    ),
    "no port": (nothing, [*RUN, "--set", "node.parent=localhost"], errors.ConfigError, r"node\.parent.*host:port"),
    "no such source": (
        lambda folder, live: (folder / "agent.toml").write_text(
            (folder / "agent.toml").read_text().replace("dataset:", "datasett:")
        ),
        RUN,
        errors.ConfigError,
        r'datasett.*nearest is "dataset"',
    ),
    "no such engine": (nothing, [*RUN, "--set", 'engine.prefer=["onnx"]'], errors.ConfigError, r"onnx.*nearest is"),
    "status of nobody": (
        nothing,
        ["status", "127.0.0.1:9"],
        errors.LinkUnavailable,
        r"127\.0\.0\.1:9: no node answers here",
    ),
    "demo of other data": (
        nothing,
        ["demo", "--data", "mnist"],
        errors.UsageError,
        r"digits on 6 devices; add --retrain",
    ),
    "demo over no link": (nothing, ["demo", "--link", "ltee"], errors.ConfigError, r"no such link: 'ltee'; nearest is"),
}


def documented() -> set[int]:
    return {int(code) for code in re.findall(r"^\| (\d+) \|", EXIT_CODES.read_text("utf-8"), re.MULTILINE)}


def one_line(result: Any, error: type[errors.TierlineError], pattern: str) -> None:
    """What every mistake must look like. Nodes may have logged what they did before."""
    assert "Traceback" not in result.stderr, result.stderr
    said = [line for line in result.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d \S+ (INFO|WARNING) ", line)]
    assert len(said) == 1, result.stderr
    assert re.match(rf"tierline: .*{pattern}", said[0]), said[0]
    assert result.returncode == error.exit_code
    assert result.returncode in documented()


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(name: str, folder: Path, live: Any, command: Any, undisturbed: None) -> None:
    spoil, arguments, error, pattern = BAD[name]
    spoil(folder, live)
    one_line(command(*arguments, cwd=folder), error, pattern)


def test_a_port_in_use(folder: Path, live: Any, command: Any, undisturbed: None) -> None:
    taken = live.fleet.address("edge")
    pattern = rf"listen = '{taken}': another process uses this port; choose another one, or stop it"
    one_line(command(*SERVE, "--set", f"node.listen={taken}", cwd=folder), errors.PortInUse, pattern)
    one_line(command(*RUN, "--set", f"node.listen={taken}", cwd=folder), errors.PortInUse, pattern)


def test_a_metrics_port_in_use(folder: Path, live: Any, command: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = command(*SERVE, "--set", f"metrics.listen={address}", cwd=folder)
    one_line(result, errors.PortInUse, rf"metrics address {address} is taken; choose another one")


# --- hostile frames ---------------------------------------------------------------------------------------------


def frame(**body: Any) -> inference_pb2.Frame:
    return inference_pb2.Frame(seq=1, **body)


def part(epoch: int, seq: int = 0, **over: Any) -> inference_pb2.Part:
    """A good Part of one row of `view-1`, but for `over` in its tensor."""
    values = {"codec": "raw", "dtype": "float32", "shape": [1, 10], "data": bytes(40), **over}
    values.setdefault("crc32", zlib.crc32(values["data"]))
    tensor = tensor_pb2.Tensor(**values)
    named = tensor_pb2.NamedTensor(name="logits", tensor=tensor)
    ids = inference_pb2.SampleIds(origin=["edge"], epoch=[epoch], seq=[seq])
    return inference_pb2.Part(level=0, name="view-1", ids=ids, plan=1, budget_ms=[1000.0], outputs=[named])


def split(good: inference_pb2.Part, **fields: Any) -> inference_pb2.Part:
    good.MergeFrom(inference_pb2.Part(**fields))
    return good


def renamed(good: inference_pb2.Part, **fields: Any) -> inference_pb2.Part:
    for name, value in fields.items():
        setattr(good, name, value)
    return good


async def converse(address: str, raw: Callable[[int], bytes | None]) -> tuple[inference_pb2.Frame | None, Any, str]:
    """Join as `device-1`, open a stream, say `raw(parent's epoch)`; the first answer, or the status of the end."""
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        fleet: Any = fleet_pb2_grpc.FleetStub(channel)
        codecs = ["affine", "bitplane", "float16", "raw"]
        hello = fleet_pb2.Hello(protocol_min=PROTOCOL, protocol_max=PROTOCOL, node="device-1", epoch=7, codecs=codecs)
        welcome = await fleet.Join(hello)
        call: Any = channel.stream_stream(EXCHANGE)()
        opening = inference_pb2.Frame(
            open=inference_pb2.Open(node="device-1", epoch=np.random.default_rng().integers(1 << 40))
        )
        await call.write(opening.SerializeToString())
        assert inference_pb2.Frame.FromString(await call.read()).open.node == "edge"
        said = raw(welcome.epoch)
        if said is not None:
            await call.write(said)
        while (answer := await read(call)) is not None:
            heard = inference_pb2.Frame.FromString(answer)
            if heard.WhichOneof("body") is not None:
                call.cancel()
                return heard, None, ""
        return None, await call.code(), await call.details()


async def read(call: Any) -> bytes | None:
    """The next message; None where the other side has ended the call, whatever its reason."""
    try:
        raw = await call.read()
    except grpc.aio.AioRpcError:
        return None
    return None if raw is grpc.aio.EOF else raw


def talk(live: Any, raw: Callable[[int], bytes | None]) -> tuple[inference_pb2.Frame | None, Any, str]:
    async def bounded() -> Any:
        return await asyncio.wait_for(converse(live.fleet.address("edge"), raw), 20)

    return asyncio.run(bounded())


REFUSED: dict[str, tuple[Callable[[int], inference_pb2.Part], str, str]] = {
    "unknown codec": (lambda e: part(e, codec="gzip"), "unknown_codec", "gzip"),
    "wrong shape": (lambda e: part(e, shape=[1, 9], data=bytes(36)), "shape_mismatch|corrupt_payload", r"9"),
    "wrong dtype": (lambda e: part(e, dtype="float64", data=bytes(80)), "shape_mismatch|corrupt_payload", "float64"),
    "no dtype at all": (lambda e: part(e, dtype="object"), "shape_mismatch|corrupt_payload", "object"),
    "too few bytes": (lambda e: part(e, data=bytes(39)), "corrupt_payload", "39"),
    "too many bytes": (lambda e: part(e, data=bytes(41)), "corrupt_payload", "41"),
    "another plan": (lambda e: renamed(part(e), plan=99), "plan", "plan 99"),
    "another view": (lambda e: renamed(part(e), name="view-9"), "plan", "view-9"),
    "a view of another device": (lambda e: renamed(part(e), name="view-0"), "plan", "view-0"),
    "a level too high": (lambda e: renamed(part(e), level=9), "plan", "level 9"),
}

ENDED: dict[str, tuple[Callable[[int], bytes], grpc.StatusCode, str]] = {
    "no frame": (lambda e: b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "no frame"),
    "half a frame": (
        lambda e: frame(part=part(e)).SerializeToString()[:-20],
        grpc.StatusCode.INVALID_ARGUMENT,
        "no frame|tensor|rows",
    ),
    "a flipped bit": (
        lambda e: frame(part=part(e, crc32=1)).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "checksum differs",
    ),
    "too many rows": (
        lambda e: frame(part=split(part(e), ids=inference_pb2.SampleIds(seq=range(5000)))).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "at most 4096",
    ),
    "rows that differ": (
        lambda e: frame(part=part(e, shape=[2, 10], data=bytes(80))).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        r"shape \[2, 10\] for 1 rows",
    ),
    "a missing number": (
        lambda e: inference_pb2.Frame(seq=5, part=part(e)).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "4 missing",
    ),
    "a huge rank": (
        lambda e: frame(part=part(e, shape=[1] * 30)).SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "rank 30",
    ),
    "an oversized frame": (lambda e: bytes((64 << 20) + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_cannot_be_used_are_refused(name: str, live: Any, undisturbed: None) -> None:
    make, code, pattern = REFUSED[name]
    answer, status, details = talk(live, lambda epoch: frame(part=make(epoch)).SerializeToString())
    assert answer is not None, (status, details)
    assert re.fullmatch(code, answer.refused.code), answer
    assert re.search(pattern, answer.refused.message), answer
    assert list(answer.refused.ids.seq) == [0]


@pytest.mark.parametrize("name", ENDED)
def test_a_bad_frame_ends_its_own_link_only(name: str, live: Any, undisturbed: None) -> None:
    make, code, pattern = ENDED[name]
    answer, status, details = talk(live, make)
    assert answer is None
    assert status is code, (status, details)
    assert re.search(pattern, details), details


def test_who_was_not_admitted_gets_no_stream(live: Any, undisturbed: None) -> None:
    async def uninvited(first: bytes) -> tuple[Any, str]:
        async with grpc.aio.insecure_channel(live.fleet.address("edge")) as channel:
            call: Any = channel.stream_stream(EXCHANGE)()
            await call.write(first)
            assert await read(call) is None
            return await call.code(), await call.details()

    stranger = inference_pb2.Frame(open=inference_pb2.Open(node="device-8", epoch=1)).SerializeToString()
    code, details = asyncio.run(uninvited(stranger))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "'device-8' has not joined 'edge'" in details
    code, details = asyncio.run(uninvited(b"GET / HTTP/1.1"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_device_comes_back_after_all_this(live: Any) -> None:
    live.fleet.restart("device-1")
    mark = len(live.news("device-1"))
    live.until("its answers from above", lambda: any(not r["degraded"] for r in live.news("device-1", mark)))
