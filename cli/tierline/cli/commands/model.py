"""`tierline model`: a network of your own, looked at and made into a Bundle."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit
from tierline.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from tierline.core.bundle import Tensor
    from tierline.models.graph import Network

app = typer.Typer(help="Cut a network of your own into a Bundle.", rich_markup_mode=None, add_completion=False)

Source = Annotated[str, typer.Argument(metavar="FILE.onnx|module:Net", help="An ONNX file, or a torch module.")]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Of the image; an ONNX file says it itself.")
]
ChannelsOption = Annotated[int, typer.Option("--channels", min=1, max=3, help="Of a torch module's image: 1 or 3.")]


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


@app.command("import")
def import_(
    model: Source,
    data: Annotated[Path, typer.Option("--data", help="Folder of images, CLASS/NAME.png: labels and a measure.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new Bundle.")],
    task: Annotated[TaskName, typer.Option("--task", help="What the outputs mean.")] = TaskName.CLASSIFICATION,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            "--cut", metavar="TENSOR[+TENSOR]|auto", help="Where; twice for three tiers. None: all on the device."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Names in the order of the outputs, a,b,c. Default: the folders, sorted."),
    ] = None,
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
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Make a Bundle from a network of your own, cut where you say or where it answers soonest."""
    from tierline.cli.folders import check_file, check_new_folder, whole_folder
    from tierline.cli.signals import exit_on_signals
    from tierline.core.bundle import MANIFEST

    if task is not TaskName.CLASSIFICATION:
        raise UsageError(f"--task {task.value}: nodes cannot decode it yet; only classification can be imported")
    check_new_folder("--out", out)
    check_file("--output", output)
    exit_on_signals()
    places = cut or []
    if "auto" in places and len(places) > 1:
        raise UsageError("--cut auto: chooses all cuts; leave the others out")
    network = _read(model, size, channels)
    from tierline.models.data.folder import find_files
    from tierline.models.own import World, import_model, preprocess_of

    preprocess = preprocess_of(network, _size(size), _numbers("--mean", mean), _numbers("--std", std))
    world = World(_numbers("--slower", slower), _numbers("--mbit", mbit))
    with whole_folder(out, last=MANIFEST) as folder:
        bundle = import_model(
            network,
            find_files(data),
            folder,
            name=out.name,
            preprocess=preprocess,
            cuts=world if places == ["auto"] else [place.split("+") for place in places],
            labels=labels.split(",") if labels else (),
            codec=codec,
            origin={"command": "tierline model import", "model": Path(model).name, "data": data.name},
        )
    manifest = bundle.manifest
    assert manifest.calibration is not None
    print(
        f"Bundle {bundle.digest[:12]} in {out}; cut: {manifest.origin['cut']}; accuracy "
        f"{manifest.calibration.accuracy[manifest.exits()[-1]]:.4f} on {manifest.calibration.num_samples} images",
        file=sys.stderr,
    )
    rows = [
        {
            "tier": level.tier.value,
            "file": section.file,
            "file_bytes": (out / section.file).stat().st_size,
            "takes": _shown(section.inputs),
            "gives": _shown(section.outputs),
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
