"""A trial's hierarchy: devices with one view each, an edge node where the Bundle has a Section for it, a cloud."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tierline.cli.fleet_files import FleetSpec
from tierline.cloud.config import PlanKnobs
from tierline.core.bundle import Bundle
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

CLOUD, EDGE = "cloud", "edge"


def device_of(view: str) -> str:
    """Name of the device that hosts a view."""
    return f"device-{view.rpartition('-')[2]}"


def trial_hierarchy(bundle: Bundle) -> Hierarchy:
    """Every node a Bundle has work for."""
    with_edge = any(level.tier is Tier.EDGE for level in bundle.manifest.levels)
    parent = EDGE if with_edge else CLOUD
    nodes = [HierarchyNode(CLOUD, Tier.CLOUD)]
    if with_edge:
        nodes.append(HierarchyNode(EDGE, Tier.EDGE, CLOUD))
    nodes += [HierarchyNode(device_of(view), Tier.DEVICE, parent, (view,)) for view in bundle.manifest.views]
    return Hierarchy(tuple(nodes))


def samples_uri(samples: Path, bundle: Bundle, num_samples: int = 0) -> str:
    """The source that plays the cameras' part, over and over: a `.npz`, a folder of images, or a video."""
    from tierline.models.captures import is_video, source_uri

    if samples.is_dir() or is_video(samples):
        return source_uri(samples, bundle.manifest.task, bundle.manifest.preprocess.size, loop="true")
    return f"dataset:{samples}?loop=true&count={num_samples}"


def trial_spec(
    bundle: Bundle,
    samples: Path,
    run_dir: Path,
    *,
    num_samples: int = 0,
    link: str = "",
    tls: bool = False,
    rate: float = 0.0,
    in_flight: int = 1,
    thresholds: Mapping[str, float] | None = None,
    mode: Any = "on_demand",
    codecs: Mapping[str, str] | None = None,
) -> tuple[FleetSpec, dict[str, Path]]:
    """What to start, and the file of answers of each view.

    `num_samples` 0: all of the file. `rate` 0: closed loop with `in_flight` samples. Else an open loop: the junction
    asks all devices for a capture at this rate, whatever is still waiting, since clocks of their own would make views
    of one sample drift apart.
    """
    views = bundle.manifest.views
    files = {view: run_dir / f"answers-{view}.jsonl" for view in views}
    uri = samples_uri(samples, bundle, num_samples)
    join = Join(by="sequence", window_ms=2000.0 if link else 500.0)
    if rate:
        join = Join(by="trigger", window_ms=join.window_ms, period_ms=1000.0 / rate)
    spec = FleetSpec(
        trial_hierarchy(bundle),
        bundle.folder,
        join=join,
        plan=PlanKnobs(mode=mode, thresholds=dict(thresholds or {}), codecs=dict(codecs or {})),
        sources=[SourceConfig(view, uri, queue="all", in_flight=in_flight) for view in views],
        sinks={device_of(view): [f"jsonl:{path}"] for view, path in files.items()},
        link=link or None,
        tls=tls,
    )
    return spec, files
