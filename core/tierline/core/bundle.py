"""A Bundle: a model ready to deploy. A folder with `bundle.json`, one ONNX file per Section, and nothing executable.

A Bundle describes *levels* from the sensor upwards. Level 0 has one Section per view; each higher level has one
Section, which takes the fused features of the level below. The last level ends in an Exit, and so may the others; what
reaches a level without one always climbs. The output tensors of a Section are named `logits` (what its exit sees;
absent without one) and `feature` (what climbs; absent at the root).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from tierline.core.errors import BundleError, DigestMismatch
from tierline.core.types import FLOAT32, PRECISIONS, TensorSpec, Tier

SCHEMA = 1
MANIFEST = "bundle.json"


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """dtype and shape of a tensor, without the batch axis."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One ONNX file and its named tensors."""

    name: str
    file: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    precisions: dict[str, str] = {}
    """By precision below float32: a file with the same tensors, computed so (`models.precision`)."""

    def file_in(self, precision: str) -> str:
        """The file of a precision. Raises BundleError where the Bundle holds none."""
        if precision == FLOAT32:
            return self.file
        if precision not in self.precisions:
            held = ", ".join((FLOAT32, *self.precisions))
            raise BundleError(
                f"Section {self.name!r}: the Bundle holds no {precision} of it, only {held}; "
                "make one with `tierline model precision`"
            )
        return self.precisions[precision]


class Exit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The exit that ends a level: how the outputs of its parts are fused and scored."""

    name: str
    aggregator: str = "max_pool"
    """Fuses the logits of the level's parts."""
    head: Section | None = None
    """An extra FC block after fusion (input `fused`, output `logits`); needed where `aggregator` is concat."""
    rule: str = "entropy"


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one tier computes."""

    tier: Tier
    sections: dict[str, Section]
    """By view name at level 0; the single key `*` above."""
    exit: Exit | None
    """None: nothing leaves here. Parts of several views meet by their exit's outputs; level 0 needs one for those."""
    feature_aggregator: str = "concat"
    """Fuses this level's features into the next level's input (tensor `fused`)."""
    feature_codec: str = "raw"
    """Token of the codec its feature travels in unless a Plan says otherwise: `bitplane` for features of +-1."""

    @property
    def head(self) -> Section | None:
        """The exit's extra block."""
        return None if self.exit is None else self.exit.head


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From a raw image to a Section's input; the same function trained the model (`core.preprocess`)."""

    size: tuple[int, int]
    """Height and width of the *whole* image before it is cut into patches."""
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of values scaled to [0, 1]."""
    grid: tuple[int, int] = (1, 1)
    """Rows and columns of patches; view i is patch i in row-major order. (1, 1) where each view has its own image."""


class CurvePoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The validation split at one vector of thresholds."""

    thresholds: dict[str, float]
    accuracy: float
    exit_share: dict[str, float]
    bytes_per_sample: dict[str, float]
    """Payload bytes per sample and per link, keyed by the lower level's tier: `device`, `edge`."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured on a validation split that neither trained nor tests the model."""

    num_samples: int
    accuracy: dict[str, float]
    """Accuracy of each exit when it alone answers everything; `device:VIEW` for a device alone."""
    thresholds: dict[str, float]
    """The chosen T of each exit but the last."""
    chosen_by: str
    """How: `best_accuracy`, `target_accuracy=0.97`, `target_exit_share=0.5`."""
    curve: list[CurvePoint]


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An edge of the network where a Section can end. `input` is the image, `output` the network's end."""

    name: str
    """Of the tensor that crosses, in the network's graph; several are joined by `+`."""
    tensor: Tensor
    """What crosses."""
    piece: Section | None
    """From the cut before this one to this one: `image` or `fused` to `feature`, at the end to `logits`. None at the
    input. Pieces run one after the other are the network."""
    work_below: float
    """Share of the network's multiply-adds."""
    exit: Exit | None = None
    """A sample can leave here; `head` turns this cut's tensor (`fused`) into `logits`. At the end without a head."""


class Candidates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the levels of this Bundle could be instead (`core.candidates`, `models.exits.derive`)."""

    cuts: list[Cut]
    """From the input upwards; first `input`, last `output`."""
    outcomes: str
    """File: what every exit said to every sample of the validation split."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `bundle.json`."""

    schema: int
    name: str
    version: int
    task: str
    labels: list[str]
    preprocess: Preprocess
    views: list[str]
    levels: list[Level]
    files: dict[str, str]
    """sha256 of every other file of the Bundle."""
    calibration: Calibration | None = None
    candidates: Candidates | None = None
    origin: dict[str, str] = {}
    """How it was made: command, data set, seed, versions."""

    def exits(self) -> list[str]:
        """Names of the exits from the sensor upwards."""
        return [level.exit.name for level in self.levels if level.exit is not None]


class Bundle:
    """An opened Bundle. Files are checked against their digests when they are read."""

    def __init__(self, folder: Path, manifest: Manifest, digest: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = digest
        """sha256 of `bundle.json`, which holds the digests of all other files."""

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check a Bundle's manifest. Raises BundleError with what is wrong and where."""
        path = folder / MANIFEST
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); is this a Bundle folder?") from error
        manifest = parse_manifest(raw, str(path))
        return cls(folder, manifest, digest_of(raw))

    def read(self, file: str) -> bytes:
        """Content of one file. Raises DigestMismatch when it is not the file the manifest speaks of."""
        expected = self.manifest.files.get(file)
        if expected is None:
            raise BundleError(f"{self.folder / MANIFEST}: lists no file {file!r}")
        try:
            raw = (self.folder / file).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.folder / file}: cannot be read ({error.strerror})") from error
        actual = digest_of(raw)
        if actual != expected:
            raise DigestMismatch(
                f"{self.folder / file}: sha256 is {actual[:12]}..., the manifest says {expected[:12]}...; "
                "fetch or train the Bundle again"
            )
        return raw

    def num_bytes(self, file: str) -> int:
        """Size of one file. Raises BundleError where it is not there."""
        try:
            return (self.folder / file).stat().st_size
        except OSError as error:
            raise BundleError(f"{self.folder / file}: cannot be read ({error.strerror})") from error


def digest_of(raw: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Decode `bundle.json`; `where` names it in errors."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{where}: not a Bundle manifest: {error}") from error
    if manifest.schema != SCHEMA:
        raise BundleError(f"{where}: schema {manifest.schema}, this version reads schema {SCHEMA}")
    for file in manifest.files:
        if Path(file).name != file or file in ("", "..", MANIFEST) or "\0" in file:
            raise BundleError(f"{where}: file name {file!r} must be a plain name inside the Bundle")
    if not manifest.levels or manifest.levels[-1].exit is None:
        raise BundleError(f"{where}: the last level has no exit; it answers what reaches it")
    if manifest.levels[0].exit is None and len(manifest.views) != 1:
        raise BundleError(
            f"{where}: level 0 of {len(manifest.views)} views has no exit; only a single view can do without"
        )
    named = [manifest.task]
    for level in manifest.levels:
        stages = [stage.partition(":")[0] for stage in level.feature_codec.split("+")]
        named += [level.feature_aggregator, *stages]
        if level.exit is not None:
            named += [level.exit.rule, level.exit.aggregator]
        for section in (*level.sections.values(), *([level.head] if level.head is not None else [])):
            for precision, file in section.precisions.items():
                if precision not in PRECISIONS[1:] or file not in manifest.files:
                    raise BundleError(
                        f"{where}: Section {section.name!r}: no such precision or file: {precision}: {file}"
                    )
    for cut in manifest.candidates.cuts if manifest.candidates is not None else ():
        if cut.exit is not None:
            named += [cut.exit.rule, cut.exit.aggregator]
    for name in named:
        # The catalogue also loads files by path; a Bundle, which may come over a link, must never make it do so.
        if not name.isidentifier():
            raise BundleError(f"{where}: {name!r} is no name of an algorithm")
    return manifest


def write_bundle(folder: Path, manifest: Manifest, files: dict[str, bytes]) -> Bundle:
    """Write a Bundle; `manifest.files` is filled in from `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    digests = {name: digest_of(raw) for name, raw in sorted(files.items())}
    complete = msgspec.structs.replace(manifest, files=digests)
    raw = msgspec.json.format(msgspec.json.encode(complete), indent=1)
    (folder / MANIFEST).write_bytes(raw)
    return Bundle(folder, complete, digest_of(raw))
