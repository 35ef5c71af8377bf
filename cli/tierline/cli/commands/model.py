"""`tierline model`: networks of your own, looked at and made into a Bundle."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit
from tierline.cli.trial import derive, precision, split
from tierline.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from tierline.core.bundle import Bundle, Tensor
    from tierline.models.graph import Network
    from tierline.models.judged import Judged
    from tierline.models.own import Meaning

app = typer.Typer(help="Make Bundles from networks of your own.", rich_markup_mode=None, add_completion=False)

Source = Annotated[str, typer.Argument(metavar="FILE.onnx|module:Net", help="An ONNX file, or a torch module.")]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Of the image; an ONNX file says it itself.")
]
ChannelsOption = Annotated[int, typer.Option("--channels", min=1, max=3, help="Of a torch module's image: 1 or 3.")]


for _command in (split.exits, split.bottleneck, derive.derive, precision.precision, split.zoo):
    app.command()(_command)


class TaskName(str, enum.Enum):
    """What the outputs mean."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    REGRESSION = "regression"


@app.command()
def cuts(
    model: Source,
    most: Annotated[int, typer.Option("--most", min=1, help="Tensors that may cross a cut together.")] = 1,
    size: SizeOption = None,
    channels: ChannelsOption = 3,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """List where a network can be cut, from the input upwards: tensors, bytes of a sample, share of the work below."""
    network = _read(model, size, channels)
    rows = [
        {
            "cut": point.name,
            "shape": " + ".join("x".join(map(str, network.tensors[name].shape)) for name in point.tensors),
            "bytes": point.num_bytes,
            "work_below": round(point.share_below, 4),
        }
        for point in network.cut_points(most)
    ]
    emit(rows, form, output)


DataOption = Annotated[
    Path,
    typer.Option("--data", help="Images: a folder (CLASS/NAME.png, NAME.txt of boxes, values.csv) or a video."),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the new Bundle.")]
TaskOption = Annotated[TaskName, typer.Option("--task", help="What the outputs mean.")]
LabelsOption = Annotated[
    str | None,
    typer.Option("--labels", help="Names in the order of the outputs, a,b,c. Default: folders, classes.txt, columns."),
]
BoxesOption = Annotated[
    str, typer.Option("--boxes", help="--task detection: cxcywh or xyxy, with :shares where they are not pixels.")
]
MostOption = Annotated[int, typer.Option("--most", min=1, help="Images or frames to look at.")]


@app.command("import")
def import_(
    model: Source,
    data: DataOption,
    out: OutOption,
    task: TaskOption = TaskName.CLASSIFICATION,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            "--cut", metavar="TENSOR[+TENSOR]|auto", help="Where; twice for three tiers. None: all on the device."
        ),
    ] = None,
    labels: LabelsOption = None,
    boxes: BoxesOption = "cxcywh",
    size: SizeOption = None,
    channels: ChannelsOption = 3,
    mean: Annotated[str, typer.Option("--mean", help="Per channel, of pixels in [0, 1].")] = "0",
    std: Annotated[str, typer.Option("--std", help="Per channel, of pixels in [0, 1].")] = "1",
    codec: Annotated[
        str, typer.Option("--codec", help="Of what crosses the cuts; see `tierline algo ls codec`.")
    ] = "raw",
    slower: Annotated[
        str,
        typer.Option("--slower", help="--cut auto: time on each tier, relative to this machine, from the device up."),
    ] = "10,1",
    mbit: Annotated[str, typer.Option("--mbit", help="--cut auto: Mbit/s of each link upwards.")] = "18.88",
    most: MostOption = 1000,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Make a Bundle from a network of your own, cut where you say or where it answers soonest."""
    from tierline.cli.folders import whole_folder
    from tierline.core.bundle import MANIFEST

    split.begin(out, output)
    places = cut or []
    if "auto" in places and len(places) > 1:
        raise UsageError("--cut auto: chooses all cuts; leave the others out")
    network = _read(model, size, channels)
    from tierline.models.captures import find_captures
    from tierline.models.own import World, import_model, preprocess_of

    preprocess = preprocess_of(network, _size(size), _numbers("--mean", mean), _numbers("--std", std))
    world = World(_numbers("--slower", slower), _numbers("--mbit", mbit))
    with whole_folder(out, last=MANIFEST) as folder:
        bundle, judged = import_model(
            network,
            find_captures(data, task.value, preprocess.size, most),
            folder,
            name=out.name,
            preprocess=preprocess,
            meaning=_meaning(task, labels, boxes),
            cuts=world if places == ["auto"] else [place.split("+") for place in places],
            codec=codec,
            origin={"command": "tierline model import", "model": Path(model).name, "data": data.name},
        )
    _tell(bundle, judged, out, f"cut: {bundle.manifest.origin['cut']}", form, output)


@app.command()
def cascade(
    models: Annotated[
        list[str],
        typer.Argument(metavar="SMALL [MIDDLE] LARGE", help="ONNX files or torch modules, lowest tier first."),
    ],
    data: DataOption,
    out: OutOption,
    task: TaskOption = TaskName.CLASSIFICATION,
    labels: LabelsOption = None,
    boxes: BoxesOption = "cxcywh",
    size: SizeOption = None,
    channels: ChannelsOption = 3,
    mean: Annotated[
        list[str] | None, typer.Option("--mean", help="Per channel, of pixels in [0, 1]; once, or once a network.")
    ] = None,
    std: Annotated[list[str] | None, typer.Option("--std", help="As --mean.")] = None,
    codec: Annotated[str, typer.Option("--codec", help="Of the image that climbs.")] = "jpeg:quality=90",
    goal: Annotated[
        str,
        typer.Option("--goal", help="target_agreement=X with the last, target_accuracy=X, target_exit_share=X, ..."),
    ] = "target_agreement=0.95",
    most: MostOption = 1000,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Make a Bundle of a small network below and a larger one above: images that the small one is unsure of climb."""
    from tierline.cli.folders import whole_folder
    from tierline.core.bundle import MANIFEST

    split.begin(out, output)
    means, stds = _each("--mean", mean or ["0"], models), _each("--std", std or ["1"], models)
    networks = [_read(model, size, channels) for model in models]
    from tierline.models.captures import find_captures
    from tierline.models.cascade import Stage
    from tierline.models.own import import_cascade, preprocess_of

    stages = [
        Stage(network, preprocess_of(network, None, own_mean, own_std))
        for network, own_mean, own_std in zip(networks, means, stds, strict=True)
    ]
    height = max(stage.preprocess.size[0] for stage in stages)
    width = max(stage.preprocess.size[1] for stage in stages)
    with whole_folder(out, last=MANIFEST) as folder:
        bundle, judged = import_cascade(
            stages,
            find_captures(data, task.value, (height, width), most),
            folder,
            name=out.name,
            meaning=_meaning(task, labels, boxes),
            codec=codec,
            goal=goal,
            origin={"command": "tierline model cascade", "data": data.name},
        )
    _tell(bundle, judged, out, f"cascade: {bundle.manifest.origin['cascade']}", form, output)


def _meaning(task: TaskName, labels: str | None, boxes: str) -> Meaning:
    from tierline.models.detector import parse_form
    from tierline.models.own import Meaning

    return Meaning(task.value, tuple(labels.split(",")) if labels else (), parse_form(boxes))


def _each(flag: str, texts: list[str], models: list[str]) -> list[tuple[float, ...]]:
    """Numbers for each of the models."""
    if len(texts) not in (1, len(models)):
        raise ConfigError(f"{flag}: given {len(texts)} times for {len(models)} networks; once, or once for each")
    return [_numbers(flag, text) for text in texts * (len(models) // len(texts))]


def _tell(bundle: Bundle, judged: Judged, out: Path, made: str, form: Format, output: Path | None) -> None:
    """Say what came out, and print a row for each tier."""
    manifest = bundle.manifest
    calibration = manifest.calibration
    assert calibration is not None
    chosen = next(point for point in calibration.curve if point.thresholds == calibration.thresholds)
    exits, measure = manifest.exits(), manifest.origin["measure"]
    print(f"Bundle {bundle.digest[:12]} in {out}; {made}", file=sys.stderr)
    alone = ", ".join(f"{name} {value:.4f}" for name, value in calibration.accuracy.items())
    print(f"{measure} on {calibration.num_samples} images, each exit alone: {alone}", file=sys.stderr)
    if len(exits) > 1:
        routed = ", ".join(f"{name} {share:.1%}" for name, share in chosen.exit_share.items())
        limits = ", ".join(f"{name} {value:g}" for name, value in chosen.thresholds.items())
        print(
            f"together {chosen.accuracy:.4f} at thresholds {limits} ({calibration.chosen_by}): {routed}",
            file=sys.stderr,
        )
    rows = [
        {
            "tier": level.tier.value,
            "file": section.file,
            "file_bytes": (out / section.file).stat().st_size,
            "takes": _shown(section.inputs),
            "gives": _shown(section.outputs),
            "coded_bytes": round(judged.sent_bytes.get(level.tier.value, 0.0), 1),
            "mean_bytes": round(chosen.bytes_per_sample.get(level.tier.value, 0.0), 1),
        }
        for level in manifest.levels
        for section in level.sections.values()
    ]
    emit(rows, form, output)


def _shown(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in tensors.items())


def _read(model: str, size: str | None, channels: int) -> Network:
    from tierline.cli.trial.training import require_torch

    require_torch("model")
    from tierline.models.own import read_own

    return read_own(model, _size(size), channels)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, x, width = text.partition("x")
    if not x or not height.isdigit() or not width.isdigit() or not int(height) * int(width):
        raise ConfigError(f"--size {text}: write height x width, as 32x32")
    return int(height), int(width)


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} {text}: write numbers, as 0.5 or 0.49,0.48,0.45") from None
