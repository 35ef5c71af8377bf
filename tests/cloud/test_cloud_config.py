"""cloud.toml and hierarchy.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierline.cloud.config import CloudConfig, load_cloud
from tierline.cloud.hierarchy import find_bundle, load_file, load_hierarchy
from tierline.core.config import Loaded
from tierline.core.errors import ConfigError
from tierline.core.plan import Join
from tierline.core.types import Tier

HIERARCHY = """
schema = 1
name   = "gate-7"
model  = "vehicles@3"
plan   = "auto"

[goal]
minimise           = "latency_p50_ms"
max_quality_loss   = 0.01
max_latency_p99_ms = 80

[join]
by        = "sequence"
window_ms = 40
min_views = 1

[[node]]
id = "cloud"
tier = "cloud"

[[node]]
id = "orin-1"
tier = "edge"
parent = "cloud"
views = ["cam-1", "cam-2"]

[up]
source = "folder:./samples"
link   = {rtt_ms = 50, mbit = 5.85, stall_share = 0.01}
"""


def cloud(tmp_path: Path, text: str, *overrides: str) -> CloudConfig:
    file = tmp_path / "cloud.toml"
    file.write_text(text, "utf-8")
    return load_cloud(file, overrides=overrides, env={"XDG_STATE_HOME": "/x"}).value


def test_a_cloud_needs_little(tmp_path: Path) -> None:
    config = cloud(tmp_path, 'schema = 1\nhierarchy = "h.toml"\nbundle = "b"')
    assert config.hierarchy == str(tmp_path / "h.toml")
    assert (config.node.id, config.node.listen) == ("cloud", "127.0.0.1:7443")
    assert config.state_dir == Path("/x/tierline/cloud")
    assert (config.plan.mode, config.plan.budget_ms, config.plan.max_batch) == ("on_demand", 5000.0, 64)
    assert config.bundle == str(tmp_path / "b")
    assert (config.enrol.listen, config.metrics.listen, config.plan.thresholds) == ("", "", {})


def test_plan_knobs(tmp_path: Path) -> None:
    config = cloud(
        tmp_path, 'schema = 1\nhierarchy = "h"\nbundle = "b"\n[plan]\nmode = "auto"', "plan.thresholds.local=0.8"
    )
    assert (config.plan.mode, config.plan.thresholds) == ("auto", {"local": 0.8})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.thresholds.local=1.5", "--set: plan.thresholds.local = 1.5: expected a number <= 1"),
        ("plan.mode=egaer", '--set: plan.mode = "egaer": no such value; nearest is "eager"'),
        ("node.listen=", "cloud.toml: node.listen: is empty"),
        ("enrol.listen=x", "cloud.toml: enrol.listen = 'x': expected host:port"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cloud(tmp_path, 'schema = 1\nhierarchy = "h.toml"\nbundle = "b"', override)
    assert str(caught.value).startswith(message)


def hierarchy(tmp_path: Path, text: str = HIERARCHY) -> Loaded:  # type: ignore[type-arg]
    file = tmp_path / "gate.toml"
    file.write_text(text, "utf-8")
    return load_file(file, env={})


def test_the_hierarchy_becomes_what_plans_are_made_of(tmp_path: Path) -> None:
    value = hierarchy(tmp_path).value
    assert value.join == Join(by="sequence", window_ms=40, min_views=1)
    assert value.hierarchy().views_below("cloud") == ["cam-1", "cam-2"]
    assert value.hierarchy().node("orin-1").tier is Tier.EDGE
    assert value.up.link == {"rtt_ms": 50, "mbit": 5.85, "stall_share": 0.01}
    assert value.goal.max_latency_p99_ms == 80
    assert load_hierarchy(tmp_path / "gate.toml") == (value.hierarchy(), value.join)


def test_views_stand_alone_unless_joined(tmp_path: Path) -> None:
    text = HIERARCHY.replace('by        = "sequence"', "")
    assert hierarchy(tmp_path, text.replace("[join]", "[join]")).value.join.by == "sequence"
    start, end = text.index("[join]"), text.index("[[node]]")
    assert hierarchy(tmp_path, text[:start] + text[end:]).value.join.by == "none"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"sequence"', '"sequnce"', 'gate.toml: join.by = "sequnce": no such value; nearest is "sequence"'),
        ('tier = "edge"', 'tier = "egde"', 'gate.toml: node[1].tier = "egde": no such value; nearest is "edge"'),
        ('"orin-1"', '"a b"', "gate.toml: node[1].id = 'a b': 1 to 63 letters"),
        ("\nviews =", "\nveiws =", 'gate.toml: node[1].veiws: no such key; nearest is "views"'),
        ('"auto"', '"plan-12"', 'gate.toml: plan = "plan-12": no such value; valid: auto'),
    ],
)
def test_mistakes_in_a_hierarchy_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hierarchy(tmp_path, HIERARCHY.replace(old, new))
    assert str(caught.value).startswith(message)


def test_a_model_is_a_folder_or_a_stored_name(tmp_path: Path) -> None:
    def keep(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "bundle.json").write_text("{}")
        return folder

    loaded, env = hierarchy(tmp_path), {"XDG_DATA_HOME": str(tmp_path / "data")}
    with pytest.raises(ConfigError, match=r"gate.toml: model = 'vehicles@3': no Bundle at .* nor below .*vehicles"):
        find_bundle(loaded, env)
    kept = [keep(tmp_path / "data" / "tierline" / "bundles" / "vehicles" / str(v)) for v in (3, 20)]
    assert find_bundle(loaded, env) == kept[0]
    assert find_bundle(hierarchy(tmp_path, HIERARCHY.replace("@3", "")), env) == kept[1]
    near = keep(tmp_path / "vehicles")
    (tmp_path / "gate.toml").write_text(HIERARCHY.replace("@3", ""))
    assert cloud(tmp_path, 'schema = 1\nhierarchy = "gate.toml"').bundle == str(near)
    assert find_bundle(hierarchy(tmp_path, HIERARCHY.replace("@3", "")), env) == near
