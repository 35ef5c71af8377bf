"""`tierline model exits`, `bottleneck` and `zoo`: exits and cuts for a tuner to choose from."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, SetOption, emit
from tierline.core import catalog
from tierline.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from tierline.models.data.dataset import Dataset
    from tierline.models.train.exits import ExitTraining


class Train(str, enum.Enum):
    """What learns."""

    FROZEN = "frozen"
    JOINT = "joint"


ModelArgument = Annotated[
    str,
    typer.Argument(metavar="FILE.onnx|module:Net|NAME", help="A file, a torch module, or of the zoo (`model zoo`)."),
]
DataOption = Annotated[str, typer.Option("--data", help="digits, mnist, fashion_mnist, cifar10, or a folder.")]
BundleOption = Annotated[Path, typer.Option("--out", help="Folder of the new Bundle.")]
MeanOption = Annotated[str, typer.Option("--mean", help="Per channel, of pixels in [0, 1]; the zoo takes the data's.")]
StdOption = Annotated[str, typer.Option("--std", help="Per channel, of pixels in [0, 1].")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", help="File for the state after every epoch; goes on from it.")
]


def exits(
    model: ModelArgument,
    data: DataOption,
    out: BundleOption,
    edges: Annotated[
        list[str] | None, typer.Option("--exit", metavar="TENSOR", help="Where an exit sits; repeatable.")
    ] = None,
    head: Annotated[str, typer.Option("--head", help="linear, conv, or conv:FILTERS.")] = "conv",
    train: Annotated[
        Train, typer.Option("--train", help="The network frozen, or jointly with its exits.")
    ] = Train.FROZEN,
    cut: Annotated[
        list[str] | None,
        typer.Option("--cut", metavar="TENSOR", help="Candidate cuts without an exit. Default: each smaller one."),
    ] = None,
    mean: MeanOption = "0",
    std: StdOption = "1",
    seed: SeedOption = 0,
    overrides: SetOption = None,
    thresholds: Annotated[
        str, typer.Option("--thresholds", help="best_accuracy, target_accuracy=X or target_exit_share=X.")
    ] = "best_accuracy",
    checkpoint: CheckpointOption = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Of the zoo: write the weights here too.")] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Train early exits on edges of a network; the Bundle offers all cuts and exits to a tuner."""
    from tierline.cli.folders import whole_folder
    from tierline.core.bundle import MANIFEST

    recipe = begin(out, output, overrides)
    is_new = model in catalog.names("model")
    if is_new and train is not Train.JOINT:
        raise UsageError(f"model exits {model}: its weights are new; give --train joint")
    if weights is not None and not is_new:
        raise UsageError(f"--weights: {model} is no network of the zoo that is trained here")
    from tierline.models.data.load import load
    from tierline.models.exits import trained
    from tierline.models.exits.attach import attach
    from tierline.models.exits.build import build
    from tierline.models.exits.given import read_given

    how = _training(recipe["training"], seed)
    dataset = load(data, seed)
    given = read_given(
        model,
        dataset,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        options=recipe["model"],
        exits=edges or (),
        head=head,
        seed=seed,
    )
    heads = given.heads
    if train is Train.JOINT and given.net is None:
        raise UsageError(f"model exits {model}: --train joint needs a torch module; an ONNX file's weights are fixed")
    network = given.network
    if edges or train is Train.JOINT:
        network = attach(
            network,
            heads,
            dataset,
            given.preprocess,
            how,
            net=given.net if train is Train.JOINT else None,
            progress=_announce(),
            checkpoint=checkpoint,
        )
    told = {"command": "tierline model exits", "model": model, "data": dataset.name, "train": train.value}
    with whole_folder(out, last=MANIFEST) as folder:
        build(
            network,
            heads,
            folder,
            name=out.name,
            labels=dataset.labels,
            preprocess=given.preprocess,
            validation=dataset.validation,
            cuts=cut or (),
            goal=thresholds,
            origin=told,
        )
    rows = _report(out, dataset)
    if weights is not None:
        assert given.net is not None
        known = trained.Recipe(
            zoo=model,
            options=recipe["model"],
            input_shape=tuple(network.tensors[network.input].shape),
            labels=dataset.labels,
            preprocess=given.preprocess,
            data=dataset.name,
            heads=dict.fromkeys(heads, head),
            shapes={edge: network.tensors[edge].shape for edge in heads},
        )
        trained.save_trained(weights, known, given.net, list(heads.values()))
    emit(rows, form, output)


def bottleneck(
    model: ModelArgument,
    data: DataOption,
    out: BundleOption,
    at: Annotated[str, typer.Option("--at", metavar="TENSOR", help="The edge; see `tierline model cuts`.")],
    channels: Annotated[int, typer.Option("--channels", min=1, help="That cross.")] = 4,
    stride: Annotated[int, typer.Option("--stride", min=1, help="By which the sides shrink.")] = 1,
    bits: Annotated[int, typer.Option("--bits", min=1, max=16, help="Per value; the codec affine's.")] = 8,
    mean: MeanOption = "0",
    std: StdOption = "1",
    seed: SeedOption = 0,
    overrides: SetOption = None,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="Write the new network here, for `model exits`.")] = None,
    checkpoint: CheckpointOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Put a learned bottleneck at an edge: fewer bytes cross there, distilled from the network as it is."""
    from tierline.cli.folders import whole_folder
    from tierline.core.bundle import MANIFEST

    recipe = begin(out, output, overrides)
    if model in catalog.names("model"):
        raise UsageError(f"model bottleneck {model}: its weights are new; train it first with `tierline model exits`")
    from tierline.core.candidates import OUTPUT
    from tierline.core.types import Tier
    from tierline.models.data.load import load
    from tierline.models.exits.bottleneck import ENCODED, learn_bottleneck
    from tierline.models.exits.build import build
    from tierline.models.exits.derive import Stage
    from tierline.models.exits.given import read_given

    how = _training(recipe["training"], seed)
    dataset = load(data, seed)
    given = read_given(model, dataset, mean=_numbers("--mean", mean), std=_numbers("--std", std))
    network = learn_bottleneck(
        given.network,
        at,
        dataset,
        given.preprocess,
        how,
        channels=channels,
        stride=stride,
        bits=bits,
        net=given.net,
        progress=_announce(),
        checkpoint=checkpoint,
    )
    if onnx is not None:
        onnx.write_bytes(network.model.SerializeToString(deterministic=True))
    narrow = f"{at}/{ENCODED}"
    told = {"command": "tierline model bottleneck", "model": model, "data": dataset.name, "at": at}
    with whole_folder(out, last=MANIFEST) as folder:
        build(
            network,
            {},
            folder,
            name=out.name,
            labels=dataset.labels,
            preprocess=given.preprocess,
            validation=dataset.validation,
            cuts=[at, narrow],
            stages=[Stage(narrow, Tier.DEVICE, codec=f"affine:bits={bits}"), Stage(OUTPUT, Tier.CLOUD)],
            origin=told,
        )
    emit(_report(out, dataset), form, output)


def zoo(form: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """List the networks of the zoo, and those that come with trained weights and exits."""
    from tierline.cli.trial.training import require_torch

    require_torch("model")
    from tierline.models.exits import trained

    rows: list[dict[str, Any]] = []
    for name in trained.names():
        recipe = trained.load_trained(name).recipe
        known = {"name": name, "network": recipe.zoo, "data": recipe.data, "exits": " ".join(recipe.heads)}
        rows.append(known)
    rows += [{"name": name, "network": name, "data": "", "exits": ""} for name in catalog.names("model")]
    emit(rows, form, output)


def begin(out: Path, output: Path | None, overrides: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """What is checked before anything is imported that takes seconds; the overrides."""
    from tierline.cli.folders import check_file, check_new_folder
    from tierline.cli.signals import exit_on_signals
    from tierline.cli.trial.training import parse_overrides, require_torch

    check_new_folder("--out", out)
    check_file("--output", output)
    recipe = parse_overrides(overrides or [])
    require_torch("model")
    exit_on_signals()
    return recipe


def _training(given: dict[str, Any], seed: int) -> ExitTraining:
    from tierline.models.recipe import build as make
    from tierline.models.train.exits import ExitTraining

    return make(ExitTraining, "training", {"seed": seed}, {}, given)


def _announce() -> Any:
    from tierline.cli.trial.training import announce

    return announce(lambda line: print(line, file=sys.stderr, flush=True), lines=50)


def _report(out: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """One row per candidate cut; quality on the validation split, and on the test split, which chose nothing."""
    from tierline.core.bundle import Bundle
    from tierline.core.candidates import candidates_of, joint, read_outcomes
    from tierline.models.exits.build import measure

    bundle = Bundle.open(out)
    manifest = bundle.manifest
    files = {file: bundle.read(file) for file in manifest.files}
    found, test = read_outcomes(bundle), measure(manifest, files, dataset.test)
    calibration = manifest.calibration
    assert calibration is not None
    chosen = manifest.exits()
    told = joint(test, chosen, [calibration.thresholds[name] for name in chosen[:-1]])
    print(
        f"Bundle {bundle.digest[:12]}; levels end at {', '.join(chosen)}; at the chosen thresholds "
        f"{told.quality:.4f} on {len(dataset.test)} test samples",
        file=sys.stderr,
    )
    rows = []
    for cut in candidates_of(manifest).cuts:
        row = {"cut": cut.name, "bytes": cut.tensor.spec.nbytes(), "work_below": round(cut.work_below, 4)}
        name = "" if cut.exit is None else cut.exit.name
        accuracy = {
            key: "" if cut.exit is None else round(float(o.quality_ES[o.of(name)].mean()), 4)
            for key, o in (("validation", found), ("test", test))
        }
        threshold = calibration.thresholds.get(name, "") if name in chosen else ""
        rows.append({**row, "exit": name, **accuracy, "threshold": threshold})
    return rows


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} {text}: write numbers, as 0.5 or 0.49,0.48,0.45") from None
