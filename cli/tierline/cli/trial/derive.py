"""`tierline model derive`: other levels from a Bundle that offers candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit
from tierline.cli.trial.split import BundleOption, begin
from tierline.core.errors import UsageError


def derive(
    bundle: Annotated[Path, typer.Argument(help="A Bundle with candidate cuts.")],
    out: BundleOption,
    levels: Annotated[
        list[str],
        typer.Option("--level", metavar="CUT=TIER", help="Where a level ends and runs; from the image upwards."),
    ],
    exits_at: Annotated[
        list[str] | None, typer.Option("--exit", metavar="CUT", help="Levels where samples can leave; `output` always.")
    ] = None,
    codec: Annotated[str, typer.Option("--codec", help="Of what climbs; see `tierline algo ls codec`.")] = "raw",
    thresholds: Annotated[
        str, typer.Option("--thresholds", help="best_accuracy, target_accuracy=X or target_exit_share=X.")
    ] = "best_accuracy",
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Choose other levels among a Bundle's candidate cuts and exits; nothing is trained."""
    from tierline.cli.folders import whole_folder
    from tierline.core.bundle import MANIFEST, Bundle
    from tierline.core.types import Tier

    begin(out, output)
    from tierline.models.exits.derive import Stage
    from tierline.models.exits.derive import derive as write

    stages = []
    for level in levels:
        cut, equals, tier = level.rpartition("=")
        if not equals or tier not in [t.value for t in Tier]:
            raise UsageError(
                f"--level {level}: write CUT=TIER, as relu_4=device; tiers are {', '.join(t.value for t in Tier)}"
            )
        stages.append(Stage(cut, Tier(tier), cut in (exits_at or ()), codec))
    strange = set(exits_at or ()) - {stage.cut for stage in stages}
    if strange:
        raise UsageError(f"--exit {min(strange)}: no --level ends there")
    with whole_folder(out, last=MANIFEST) as folder:
        made = write(Bundle.open(bundle), stages, folder, goal=thresholds).manifest
    rows = [
        {
            "level": index,
            "tier": level.tier.value,
            "ends_at": stage.cut,
            "exit": "" if level.exit is None else level.exit.name,
            "threshold": ""
            if level.exit is None or made.calibration is None
            else made.calibration.thresholds.get(level.exit.name, ""),
        }
        for index, (level, stage) in enumerate(zip(made.levels, stages, strict=True))
    ]
    emit(rows, form, output)
