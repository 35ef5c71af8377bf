"""`tierline model precision`: a Bundle whose Sections can be computed below float32, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit
from tierline.cli.trial.split import BundleOption, begin


def precision(
    bundle: Annotated[Path, typer.Argument(help="Folder of a Bundle.")],
    out: BundleOption,
    precisions: Annotated[list[str], typer.Option("--precision", help="float16, int8 or float8_e4m3; repeatable.")],
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="images (.npz) to calibrate on. Default: those that the Bundle keeps."),
    ] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Add files of other precisions to a Bundle, and tell how far its answers stay those of float32."""
    from tierline.cli.folders import whole_folder
    from tierline.cli.images import only_images_of
    from tierline.core.bundle import MANIFEST, Bundle

    begin(out, output, None)
    from tierline.models.precision.bundle import add_precisions, agreement

    images = only_images_of(samples) if samples is not None else None
    with whole_folder(out, last=MANIFEST) as folder:
        add_precisions(Bundle.open(bundle), precisions, folder, images=images)
    made = Bundle.open(out)
    sections = [s for level in made.manifest.levels for s in (*level.sections.values(), level.head) if s is not None]
    rows = [
        {
            "precision": one,
            "bytes": sum(made.num_bytes(section.file_in(one)) for section in sections),
            **{f"agreement {name}": round(share, 4) for name, share in agreement(made, one, images).items()},
        }
        for one in dict.fromkeys(("float32", *precisions))
    ]
    emit(rows, form, output)
