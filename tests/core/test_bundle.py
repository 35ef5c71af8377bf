from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tierline.core.bundle import (
    MANIFEST,
    Bundle,
    Calibration,
    CurvePoint,
    Exit,
    Level,
    Manifest,
    Preprocess,
    Section,
    Tensor,
    digest_of,
    parse_manifest,
    write_bundle,
)
from tierline.core.errors import BundleError, DigestMismatch
from tierline.core.types import TensorSpec, Tier

FILES = {"device-a.onnx": b"weights of a", "cloud.onnx": b"weights of the cloud"}


def manifest() -> Manifest:
    image, logits, feature = Tensor("float32", (1, 8, 4)), Tensor("float32", (10,)), Tensor("float32", (4, 4, 2))
    device = Section("device-a", "device-a.onnx", {"image": image}, {"logits": logits, "feature": feature})
    cloud = Section("cloud", "cloud.onnx", {"feature": feature}, {"logits": logits})
    return Manifest(
        schema=1,
        name="digits",
        version=2,
        task="classification",
        labels=[str(digit) for digit in range(10)],
        preprocess=Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.25,), grid=(1, 2)),
        views=["a"],
        levels=[
            Level(Tier.DEVICE, {"a": device}, Exit("local"), feature_codec="bitplane"),
            Level(Tier.CLOUD, {"*": cloud}, Exit("cloud", aggregator="concat")),
        ],
        files={},
        calibration=Calibration(
            num_samples=100,
            accuracy={"local": 0.9, "cloud": 0.95},
            thresholds={"local": 0.8},
            chosen_by="best_accuracy",
            curve=[CurvePoint({"local": 0.8}, 0.95, {"local": 0.6, "cloud": 0.4}, {"device": 41.6})],
        ),
        origin={"seed": "0"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "digits", manifest(), FILES)
    return tmp_path / "digits"


def edit(folder: Path, change: dict[str, Any]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content.update(change)
    (folder / MANIFEST).write_text(json.dumps(content))


def test_round_trip(folder: Path) -> None:
    written, opened = write_bundle(folder, manifest(), FILES), Bundle.open(folder)
    assert opened.manifest == written.manifest
    assert opened.digest == written.digest == digest_of((folder / MANIFEST).read_bytes())
    assert opened.manifest.files == {name: digest_of(raw) for name, raw in FILES.items()}
    assert opened.manifest.exits() == ["local", "cloud"]
    assert {name: opened.read(name) for name in FILES} == FILES
    assert opened.manifest.levels[0].sections["a"].outputs["feature"].spec == TensorSpec("float32", (4, 4, 2))


def test_nothing_but_the_listed_files_is_written(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *FILES}


def test_a_changed_file_is_a_digest_mismatch_naming_both(folder: Path) -> None:
    (folder / "cloud.onnx").write_bytes(b"other weights")
    bundle = Bundle.open(folder)
    assert bundle.read("device-a.onnx") == FILES["device-a.onnx"]
    with pytest.raises(DigestMismatch) as caught:
        bundle.read("cloud.onnx")
    message = str(caught.value)
    assert "cloud.onnx" in message
    assert digest_of(b"other weights")[:12] in message
    assert digest_of(FILES["cloud.onnx"])[:12] in message


def test_the_digest_covers_every_file(folder: Path) -> None:
    other = write_bundle(folder, manifest(), FILES | {"cloud.onnx": b"other"})
    assert other.digest != write_bundle(folder, manifest(), FILES).digest


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "cloud.onnx").unlink()
    with pytest.raises(BundleError, match=r"cloud\.onnx: cannot be read"):
        Bundle.open(folder).read("cloud.onnx")
    with pytest.raises(BundleError, match=r"bundle\.json: cannot be read .* is this a Bundle folder"):
        Bundle.open(folder / "nowhere")


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/b", "./cloud.onnx", "cloud.onnx/", "..", ".", "", "a\0b", MANIFEST]
)
def test_file_names_cannot_leave_the_bundle(folder: Path, name: str) -> None:
    edit(folder, {"files": {name: "0" * 64}})
    with pytest.raises(BundleError, match="plain name inside the Bundle"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", MANIFEST, "unlisted"])
def test_only_listed_files_can_be_read(folder: Path, name: str) -> None:
    (folder.parent / "evil").write_bytes(b"secret")
    (folder / "unlisted").write_bytes(b"x")
    with pytest.raises(BundleError, match="lists no file"):
        Bundle.open(folder).read(name)


def test_an_unknown_key_is_named(folder: Path) -> None:
    edit(folder, {"lables": []})
    with pytest.raises(BundleError, match=r"bundle\.json: not a Bundle manifest: .*`lables`"):
        Bundle.open(folder)


def test_another_schema_is_refused(folder: Path) -> None:
    edit(folder, {"schema": 2})
    with pytest.raises(BundleError, match="schema 2, this version reads schema 1"):
        Bundle.open(folder)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"schema": "1"}'])
def test_what_is_no_manifest_is_one_line(raw: bytes) -> None:
    with pytest.raises(BundleError, match=r"here: not a Bundle manifest") as caught:
        parse_manifest(raw, "here")
    assert "\n" not in str(caught.value)


def test_an_algorithm_is_a_name_and_never_a_file(folder: Path) -> None:
    edit(folder, {"task": "./classification.py"})
    with pytest.raises(BundleError, match=r"'\./classification\.py' is no name of an algorithm"):
        Bundle.open(folder)


def test_levels_without_an_exit(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    device, edge, cloud = manifest.levels

    def read(levels: list[Any], views: list[str]) -> Manifest:
        changed = msgspec.structs.replace(manifest, levels=levels, views=views)
        return parse_manifest(msgspec.json.encode(changed), "b.json")

    silent, quiet = (msgspec.structs.replace(level, exit=None) for level in (device, edge))
    assert read([device, quiet, cloud], manifest.views).exits() == ["local", "cloud"]
    assert read([silent, quiet, cloud], ["left"]).exits() == ["cloud"]
    with pytest.raises(BundleError, match=r"^b\.json: the last level has no exit"):
        read([device, quiet], manifest.views)
    with pytest.raises(BundleError, match=r"^b\.json: level 0 of 3 views has no exit"):
        read([silent, edge, cloud], manifest.views)
