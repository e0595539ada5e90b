"""`alexmri demo-data, audit`: what is done with images before a training."""

from pathlib import Path
from typing import Any

import click

from alexmri.options import read_settings, settings_options

EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def demo_data(folder: Path, seed: int) -> None:
    """Write synthetic slices of 40 made-up people into FOLDER, one folder per class."""
    from alexmri.data.phantom import write_demo_data
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    count = write_demo_data(folder, seed=seed, track=terminal.track)
    terminal.warn(f"{folder} now holds {count} SYNTHETIC slices: made-up images, not people")


@click.command()
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
    """Look for copies, shared people, misfiled and unreadable images in DATA.

    Of the settings only those of people and split matter: --groups, --group-regex, --groups-file,
    --split-by, --split-ratios and --seed.
    """
    settings = read_settings(config_file, options).settings
    from alexmri.contract.resources import cpu_cores
    from alexmri.data.audit import audit as look
    from alexmri.data.audit_report import render_audit, show_audit
    from alexmri.data.dataset import load_dataset
    from alexmri.files import write_atomically, write_json
    from alexmri.terminal import choose_terminal

    # What the network would see does not matter here: the audit looks at 32 x 32 pixels.
    settings = settings.model_copy(update={"image_size": 32, "channels": 1})
    terminal = choose_terminal()
    dataset = load_dataset(
        {"train": data}, settings, workers=cpu_cores(), terminal=terminal, for_audit=True
    )
    found = look(dataset, settings)
    if json_file:
        write_json(json_file, found.document)
    if html_file:
        write_atomically(
            html_file, render_audit(found.document, found.paths, title=f"Audit of {data.name}")
        )
    show_audit(found.document)
