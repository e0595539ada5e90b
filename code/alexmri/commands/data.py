"""`alexmri demo-data, slices, audit`: what is done with images before a training."""

from pathlib import Path
from typing import Any

import click

from alexmri.errors import UserError
from alexmri.options import command, read_settings, settings_options

EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class Millimetres(click.ParamType[float]):
    """A length: `2`, `2mm` or `2 mm`."""

    name = "mm"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return float(str(value).lower().removesuffix("mm"))
        except ValueError:
            self.fail(f"{value!r} is not a length; write it as in '2 mm'", param, ctx)


MILLIMETRES = Millimetres()


@command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def demo_data(folder: Path, seed: int) -> None:
    """Write synthetic slices of 40 made-up people into FOLDER.

    FOLDER gets a folder for each class.
    """
    from alexmri.data.phantom import write_demo_data
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    count = write_demo_data(folder, seed=seed, track=terminal.track)
    terminal.warn(f"{folder} now holds {count} SYNTHETIC slices: made-up images, not people")


@command()
@click.argument("data", type=EXISTING_FOLDER)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="also write the findings"
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="also write a page")
@settings_options
def audit(
    data: Path,
    json_file: Path | None,
    html_file: Path | None,
    config_file: Path | None,
    **options: Any,
) -> None:
    """Look for copies, shared people and bad images in DATA.

    Bad ones cannot be read, or stand in the wrong class.

    Of the settings only those of people and split matter: --groups, --group-regex, --groups-file,
    --split-by, --split-ratios and --seed.
    """
    settings = read_settings(config_file, options).settings
    from alexmri.contract.resources import cpu_cores
    from alexmri.data.audit import audit as look
    from alexmri.data.audit_report import render_audit, show_audit
    from alexmri.data.dataset import load_dataset
    from alexmri.files import write_atomically, write_json
    from alexmri.terminal import choose_terminal, number_of

    # What the network would see does not matter here: the audit looks at whole images, 32 x 32.
    plain = {"image_size": 32, "channels": 1, "center": "none", "intensity": "none"}
    settings = settings.model_copy(update=plain)
    terminal = choose_terminal()
    dataset = load_dataset(
        {"train": data}, settings, workers=cpu_cores(), terminal=terminal, for_audit=True
    )
    with terminal.working(f"auditing {number_of(len(dataset.folder.images), 'image')}"):
        found = look(dataset, settings)
    if json_file:
        write_json(json_file, found.document)
    if html_file:
        write_atomically(
            html_file, render_audit(found.document, found.paths, title=f"Audit of {data.name}")
        )
    show_audit(found.document)


@command()
@click.argument("scans", type=EXISTING_FOLDER)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--plane",
    type=click.Choice(["axial", "coronal", "sagittal"]),
    default="axial",
    show_default=True,
    help="plane of the slices",
)
@click.option("--every", "every_mm", type=MILLIMETRES, help="distance between slices, as in '2 mm'")
@click.option("--center", type=click.IntRange(min=1), help="only so many slices around the middle")
@click.option(
    "--spacing", "spacing_mm", type=MILLIMETRES, help="side of a pixel (default: the finest)"
)
@click.option(
    "--percentiles",
    type=(float, float),
    help="of all voxels of a volume, what becomes black and white (default: 0.5 99.5)",
)
@click.option("--window", type=(float, float), help="center and width, in the unit of the scan")
@click.option("--voi-lut", is_flag=True, help="the window that the scan itself names")
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", show_default=True)
@click.option("--include", help="only files whose path matches, as in '*_T1w.nii.gz'")
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or TSV file with the class of each scan (default: a folder per class)",
)
@click.option("--label-column", help="its column of classes")
@click.option("--id-column", help="its column that names scans (default: participant_id, ID, …)")
@click.option("--label-map", help="classes by value, as in 0=NonDemented,0.5=VeryMildDemented")
@click.option("--workers", type=click.IntRange(min=1), help="processes (default: one per core)")
def slices(
    scans: Path,
    out: Path,
    plane: Any,
    every_mm: float | None,
    center: int | None,
    spacing_mm: float | None,
    percentiles: tuple[float, float] | None,
    window: tuple[float, float] | None,
    voi_lut: bool,
    bits: str,
    include: str | None,
    labels_file: Path | None,
    label_column: str | None,
    id_column: str | None,
    label_map: str | None,
    workers: int | None,
) -> None:
    """Cut the DICOM and NIfTI scans below SCANS into slices in OUT.

    OUT is then a data folder for `train`.

    The same command again goes on where it was interrupted. See docs/data.md.
    """
    if sum((percentiles is not None, window is not None, voi_lut)) > 1:
        raise UserError("--percentiles, --window and --voi-lut exclude one another; pass one")
    if (labels_file is None) != (label_column is None):
        raise UserError("--labels FILE and --label-column COLUMN belong together")
    if labels_file is None and (id_column or label_map):
        raise UserError("--id-column and --label-map belong to --labels FILE")
    mapping = _mapping(label_map or "")
    from pydantic import ValidationError

    from alexmri.contract.resources import cpu_cores
    from alexmri.data.scan_labels import read_table
    from alexmri.data.slicing import Slicing
    from alexmri.data.write_slices import write_slices
    from alexmri.terminal import choose_terminal, first_few, number_of

    chosen: dict[str, Any] = {"percentiles": percentiles} if percentiles else {}
    if window:
        chosen = {"intensity": "window", "window": window}
    elif voi_lut:
        chosen = {"intensity": "voi"}
    try:
        slicing = Slicing(
            plane=plane,
            every_mm=every_mm,
            center=center,
            spacing_mm=spacing_mm,
            bits=16 if bits == "16" else 8,
            **chosen,
        )
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    table = None
    if labels_file and label_column:
        table = read_table(
            labels_file, label_column=label_column, id_column=id_column, mapping=mapping
        )
    try:
        written = write_slices(
            scans,
            out,
            slicing,
            table=table,
            include=include,
            workers=workers or cpu_cores(),
            terminal=choose_terminal(),
        )
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on from here", err=True)
        raise
    count = sum(written.slices.values())
    found = f"{number_of(count, 'slice')} of {number_of(written.scans, 'scan')}"
    each = ", ".join(f"{label} {count}" for label, count in sorted(written.slices.items()))
    click.echo(f"{out} holds {found} ({each})")
    if faults := written.unreadable:
        raise UserError(
            f"{number_of(len(faults), 'scan')} could not be used: {first_few(faults, '; ')}."
            f" Repair or remove them and run the same command again, or train on what is in {out}"
        )


def _mapping(text: str) -> dict[str, str]:
    """Return value -> class of `0=NonDemented,0.5=VeryMildDemented`."""
    mapping: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        value, equals, name = (each.strip() for each in part.partition("="))
        if not (value and equals and name) or "/" in name or name.startswith("."):
            raise UserError(f"--label-map has {part!r}; write VALUE=CLASS,VALUE=CLASS")
        if value in mapping:
            raise UserError(f"--label-map names the value {value!r} twice")
        mapping[value] = name
    return mapping
