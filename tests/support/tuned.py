"""A small Bundle with candidates, and a Profile of it that is made up: for tests of commands that tune."""

from __future__ import annotations

from pathlib import Path

import torch
from exit_nets import digits, graph_of, make_net

from tierline.core.bundle import Bundle
from tierline.core.plan import Hierarchy, HierarchyNode
from tierline.core.profile import SCHEMA, CodecTime, HeadTime, LinkTime, NodeProfile, Profile, SectionTime
from tierline.core.types import Tier
from tierline.models.exits.attach import attach, make_heads
from tierline.models.exits.build import build
from tierline.models.train.exits import ExitTraining
from tierline.models.views import preprocess_for

HIERARCHY = Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("device", Tier.DEVICE, "cloud", ("view-1",))))
CODECS = ("raw", "affine:8", "affine:4", "jpeg")
TOML = """
schema = 1
name = "tuned"
model = "{model}"

[goal]
minimise = "latency_mean_ms"
max_quality_loss = 0.02

[[node]]
id = "cloud"
tier = "cloud"

[[node]]
id = "device"
tier = "device"
parent = "cloud"
views = ["view-1"]
"""


def make_bundle(folder: Path) -> Bundle:
    """A small network on digits with one exit, both trained for a moment."""
    data = digits()
    net = make_net()
    network = graph_of(net)
    preprocess = preprocess_for(data, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = make_heads(network, ["max_pool2d"], "linear", 10)
        how = ExitTraining(epochs=3, batch_size=32, learning_rate=0.05, shift=0)
        network = attach(network, heads, data, preprocess, how, net=net)
    return build(
        network,
        heads,
        folder,
        name="digits",
        labels=data.labels,
        preprocess=preprocess,
        validation=data.validation,
        cuts=["relu_1"],
    )


def profile_of(bundle: Bundle, made_at: str = "2026-01-01T00:00:00Z", slower: float = 20.0) -> Profile:
    """A device that is `slower` than the cloud, over LTE. Times go with the work below each cut."""
    assert bundle.manifest.candidates is not None
    cuts = bundle.manifest.candidates.cuts

    def node(name: str, tier: Tier, factor: float) -> NodeProfile:
        sections = tuple(
            SectionTime(
                a.name, b.name, "onnxruntime", "float32", 1, int(factor * 2e6 * (b.work_below - a.work_below)), 0, 9
            )
            for i, a in enumerate(cuts)
            for b in cuts[i + 1 :]
        )
        heads = tuple(
            HeadTime(c.exit.name, "onnxruntime", "float32", 1, int(factor * 5e4), 0, 9)
            for c in cuts[:-1]
            if c.exit is not None
        )
        codecs = tuple(
            CodecTime(c.name, token, 20_000, 20_000, c.tensor.spec.nbytes() / (1, 4, 8, 3)[CODECS.index(token)], 999, 9)
            for c in cuts[:-1]
            for token in CODECS
            if token != "jpeg" or c.name == "input"
        )
        return NodeProfile(name, tier, made_at, {}, sections, heads, codecs)

    nodes = {"cloud": node("cloud", Tier.CLOUD, 1.0), "device": node("device", Tier.DEVICE, slower)}
    return Profile(SCHEMA, bundle.digest, nodes, {"device": LinkTime("device", 50.0, 5.85e6, 5.85e6, 1.0)})
