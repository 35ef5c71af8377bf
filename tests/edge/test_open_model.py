"""A hierarchy as one model of the Open Inference Protocol: cloud and edge node in one process, over real links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tierline.cloud.config import CloudConfig, PlanKnobs
from tierline.cloud.config import Node as CloudNode
from tierline.cloud.server import run_cloud
from tierline.core.bundle import Bundle
from tierline.core.flow.levels import LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Array
from tierline.edge.agent import run_agent
from tierline.edge.config import AgentConfig, Node, SourceConfig
from tierline.v1 import open_inference_pb2 as pb
from tierline.v1 import open_inference_pb2_grpc

NUM_ROWS = 12
LISTEN = "127.0.0.1:0"


@asynccontextmanager
async def running(run: Any, config: Any) -> AsyncIterator[str]:
    """A node until the block ends; its address."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run(config, lambda line: ready.set_result(line["listen"])))
    try:
        await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        if task.done():
            task.result()
        yield await ready
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def hierarchy(folder: Path, host: str, views: list[str]) -> Path:
    """A cloud, an edge node `gate`, a device below it; `host` is who hosts the views."""
    nodes = (("cloud", "cloud", ""), ("gate", "edge", "cloud"), ("device", "device", "gate"))
    text = 'schema = 1\nname = "h"\nmodel = "m"\n[join]\nby = "sequence"\n'
    for name, tier, parent in nodes:
        text += (
            f'[[node]]\nid = "{name}"\ntier = "{tier}"\nparent = "{parent}"\nviews = {views if name == host else []}\n'
        )
    (folder / "h.toml").write_text(text)
    return folder / "h.toml"


def request(bundle: Bundle, images: Mapping[str, Array]) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name=bundle.manifest.name)
    for view, image in images.items():
        made.inputs.add(name=view, datatype="UINT8", shape=image.shape)
        made.raw_input_contents.append(image.tobytes())
    return made


def words(raw: bytes) -> list[str]:
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return found


def columns(reply: pb.ModelInferResponse) -> dict[str, list[Any]]:
    raw = {output.name: content for output, content in zip(reply.outputs, reply.raw_output_contents, strict=True)}
    return {
        "index": np.frombuffer(raw["index"], "<i8").tolist(),
        "confidence": np.frombuffer(raw["confidence"], "<f4").tolist(),
        "degraded": np.frombuffer(raw["degraded"], "?").tolist(),
        "label": words(raw["label"]),
        "exit": words(raw["exit"]),
    }


async def ask(address: str, made: pb.ModelInferRequest) -> dict[str, list[Any]]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=made.model_name))
        assert [tensor.name for tensor in metadata.inputs] == [tensor.name for tensor in made.inputs]
        return columns(await stub.ModelInfer(made, timeout=20))


def expected(bundle: Bundle, images: Mapping[str, Array], thresholds: Mapping[str, float]) -> dict[str, list[Any]]:
    oracle, preprocess = Oracle(bundle, engine_maker("onnxruntime")), Preprocessor(bundle.manifest.preprocess)
    views_NB = np.stack([preprocess.many(image, index) for index, image in enumerate(images.values())])
    exits, index_B = oracle.answers(views_NB, thresholds)
    outputs = oracle.exits(views_NB).outputs
    confidence = []
    for row, (name, index) in enumerate(zip(exits, index_B, strict=True)):
        logits_K = outputs[name][LOGITS][row].astype(float)
        confidence.append(float((np.exp(logits_K) / np.exp(logits_K).sum())[index]))
    labels = [bundle.manifest.labels[index] for index in index_B]
    return {"index": index_B.tolist(), "label": labels, "exit": exits, "confidence": confidence}


@pytest.mark.parametrize("host", ["gate", "device"])
def test_the_hierarchy_answers_as_the_bundle_does(tmp_path: Path, tiny_bundle: Bundle, host: str) -> None:
    """By the cloud alone, and by the edge node: through its flow, where hard samples climb to the cloud, if it hosts
    the views; by itself if a device does, which is away."""
    views = list(tiny_bundle.manifest.views)
    rng = np.random.default_rng(3)
    images = {view: rng.integers(0, 256, (NUM_ROWS, 2, 2, 1), np.uint8) for view in views}
    preprocess = Preprocessor(tiny_bundle.manifest.preprocess)
    found = Oracle(tiny_bundle, engine_maker("onnxruntime")).exits(
        np.stack([preprocess.many(image, index) for index, image in enumerate(images.values())])
    )
    # Half of the samples leave at every exit.
    names = tiny_bundle.manifest.exits()[:-1]
    thresholds = {name: float(np.clip(np.median(found.scores[name]), 0.0, 1.0)) for name in names}
    cloud = CloudConfig(
        schema=1,
        hierarchy=str(hierarchy(tmp_path, host, views)),
        bundle=str(tiny_bundle.folder),
        node=CloudNode(listen=LISTEN, state_dir=str(tmp_path / "cloud")),
        plan=PlanKnobs(thresholds=thresholds),
    )
    made = request(tiny_bundle, images)

    async def go() -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        async with running(run_cloud, cloud) as root:
            edge = AgentConfig(
                schema=1,
                node=Node("gate", parent=root, listen=LISTEN, state_dir=str(tmp_path / "gate")),
                source=tuple(SourceConfig(view, "api:") for view in views if host == "gate"),
            )
            async with running(run_agent, edge) as gate:
                return await ask(gate, made), await ask(root, made)

    through, at_root = asyncio.run(go())
    wanted = expected(tiny_bundle, images, thresholds)
    assert len(set(wanted["exit"])) > 1
    for got in (through, at_root):
        assert {key: got[key] for key in ("index", "label", "exit")} == {
            key: wanted[key] for key in ("index", "label", "exit")
        }
        assert got["confidence"] == pytest.approx(wanted["confidence"], abs=1e-5)
        assert got["degraded"] == [False] * NUM_ROWS


def test_what_a_node_refuses(tmp_path: Path, tiny_bundle: Bundle) -> None:
    views = list(tiny_bundle.manifest.views)
    config = AgentConfig(
        schema=1,
        node=Node("alone", listen=LISTEN, state_dir=str(tmp_path / "state")),
        bundle=str(tiny_bundle.folder),
        source=tuple(SourceConfig(view, "api:") for view in views),
    )
    image = np.zeros((1, 2, 2, 7), np.uint8)

    async def go() -> None:
        async with running(run_agent, config) as address, grpc.aio.insecure_channel(address) as channel:
            stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match=r"expected 1 \(grey\), 3 \(RGB\) or 4") as refused:
                await stub.ModelInfer(request(tiny_bundle, dict.fromkeys(views, image)), timeout=20)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            good = request(tiny_bundle, dict.fromkeys(views, image[..., :1]))
            assert columns(await stub.ModelInfer(good, timeout=20))["degraded"] == [False]

    asyncio.run(go())
