"""`alexmri train, crossval, config`: from images to a measured model."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from alexmri.contract.gpu import use_gpu
from alexmri.contract.launcher import is_launched
from alexmri.errors import UserError
from alexmri.options import command, read_settings, settings_options, subgroups_option
from alexmri.settings import Layer, Settings

if TYPE_CHECKING:
    from alexmri.terminal import Terminal

EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@command()
@click.option("--data", type=EXISTING_FOLDER, required=True, help="folder of class folders")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="output folder"
)
@click.option("--overwrite", is_flag=True, help="replace the run that is in the output folder")
@settings_options
def train(data: Path, out: Path, overwrite: bool, config_file: Path | None, **options: Any) -> None:
    """Train and measure a model, or resume a run that was stopped.

    The same command resumes it.
    """
    from alexmri.contract.signals import Stopped, StopRequest, die_with_parent
    from alexmri.terminal import SilentTerminal, choose_terminal
    from alexmri.training.worker import exit_code_of_worker

    terminal = choose_terminal()
    with StopRequest().on() as stop:
        try:
            with stop.interrupts(at=1):
                settings = read_settings(config_file, options).settings
                _check_folders(data, out, overwrite)
                if not is_launched(os.environ):
                    _launch(settings)
                from alexmri.evaluation.tables import show_run
                from alexmri.training.distributed import joined
                from alexmri.training.job import Job, run_job
                from alexmri.training.worker import ending_with_the_others
            job = Job(
                channels={"train": data},
                settings=settings,
                output=out,
                model=out / "model",
                checkpoints=out / "checkpoints",
                start_anew=overwrite,
            )
            if is_launched(os.environ):
                die_with_parent()
            with ending_with_the_others(stop), joined(os.environ) as workers:
                terminal = terminal if workers.is_first else SilentTerminal()
                outcome = run_job(job, terminal, stop, model_when_stopped=False, workers=workers)
        except Stopped:
            terminal.say("stopped before the training began: there was nothing to save")
            sys.exit(exit_code_of_worker(stop))
    if not workers.is_first:
        return
    if outcome.stopped:
        _say_how_to_resume(terminal, exit_code_of_worker(stop))
    assert outcome.evaluation is not None  # noqa: S101 - a run that was not stopped was measured
    show_run(outcome.evaluation)
    terminal.say(f"model: {job.model}")
    terminal.say(f"report: {outcome.report}")


@command()
@click.option("--data", type=EXISTING_FOLDER, required=True, help="folder of class folders")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="output folder"
)
@click.option("--folds", type=click.IntRange(2, 100), default=5, show_default=True)
@click.option("--overwrite", is_flag=True, help="replace the cross-validation in the output folder")
@click.option(
    "--keep-all-checkpoints", is_flag=True, help="keep those of finished folds too (300 MB each)"
)
@subgroups_option
@settings_options
def crossval(
    data: Path,
    out: Path,
    folds: int,
    overwrite: bool,
    keep_all_checkpoints: bool,
    subgroups: str | None,
    config_file: Path | None,
    **options: Any,
) -> None:
    """Train and test a model per fold, and pool the figures.

    So every image is tested once. People are kept together where they are known; --split-by slice
    deals slices instead. The same command goes on where it was stopped.
    """
    from alexmri.data.groups_table import parse_columns

    columns = parse_columns(subgroups) if subgroups is not None else ()
    resolved = read_settings(config_file, options)
    _check_folders(data, out, overwrite)
    use_gpu(click.echo)
    from alexmri.contract.signals import StopRequest, exit_code_of_stop
    from alexmri.evaluation.tables import show_folds, show_measured, show_pooled, show_subgroups
    from alexmri.terminal import choose_terminal
    from alexmri.training.crossval import (
        Crossval,
        choose_groups_file,
        choose_split_by,
        run_crossval,
    )

    if resolved.settings.workers_per_host > 1:
        raise UserError("crossval trains with one worker; leave out --workers-per-host")
    terminal = choose_terminal()
    chosen: dict[str, Any] = {}
    if columns and (table := choose_groups_file(data, resolved.settings)):
        chosen["groups_file"] = table
        resolved = read_settings(config_file, options, Layer("crossval", chosen))
    if resolved.sources["split_by"] == "default":
        chosen["split_by"] = choose_split_by(data, resolved.settings, terminal)
        resolved = read_settings(config_file, options, Layer("crossval", chosen))
    plan = Crossval(data, resolved.settings, out, folds, overwrite, keep_all_checkpoints, columns)
    with StopRequest().on() as stop:
        evaluation = run_crossval(plan, terminal, stop)
    if evaluation is None:
        _say_how_to_resume(terminal, exit_code_of_stop(stop.signal))
    show_folds(evaluation)
    show_measured(evaluation["test"], f"all {folds} folds pooled")
    show_pooled(evaluation)
    if evaluation["subgroups"]:
        show_subgroups(evaluation["subgroups"])
    terminal.say(f"predictions: {out / 'predictions.csv'}")
    terminal.say(f"report: {out / 'report.html'}")


@command()
@click.option("--show-sources", is_flag=True, help="say where each value comes from")
@click.option("--model", "show_model", is_flag=True, help="show the layers of the network instead")
@settings_options
def config(show_sources: bool, show_model: bool, config_file: Path | None, **options: Any) -> None:
    """Show the settings a training with these options would have."""
    from rich.markup import escape
    from rich.table import Table

    from alexmri.terminal import print_table

    resolved = read_settings(config_file, options)
    if show_model:
        _show_layers(resolved.settings)
        return
    table = Table("setting", "value", *(["from"] if show_sources else []), "meaning")
    for name, value in resolved.settings.model_dump(mode="json").items():
        source = [escape(resolved.sources[name])] if show_sources else []
        meaning = Settings.model_fields[name].description or ""
        table.add_row(name, escape(json.dumps(value)), *source, escape(meaning))
    print_table(table)


def _show_layers(settings: Settings) -> None:
    """Print the layers of the network with output shapes, parameters and multiply-adds."""
    from rich.table import Table

    from alexmri.model.alexnet import summarise
    from alexmri.terminal import print_table

    layers = summarise(
        classes=settings.num_classes or 4,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
    )
    table = Table("layer", "kind", "output", show_footer=True)
    parameters = sum(layer.parameters for layer in layers)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    table.add_column("parameters", f"{parameters:,}", justify="right")
    table.add_column("MFLOPs per image", f"{2 * multiply_adds / 1e6:,.1f}", justify="right")
    for layer in layers:
        table.add_row(
            layer.name,
            layer.kind,
            " x ".join(str(n) for n in layer.output),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{2 * layer.multiply_adds / 1e6:,.1f}" if layer.multiply_adds else "",
        )
    print_table(table)
    click.echo("A multiplication and an addition count as two FLOPs; forward pass only.")


def _check_folders(data: Path, out: Path, overwrite: bool) -> None:
    """Refuse, before anything slow is imported, folders that no training can read or write."""
    from alexmri.data.folders import discover
    from alexmri.training.run_folder import is_finished

    if out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"--out {out} lies inside the data folder {data}; choose another")
    if is_finished(out) and not overwrite:
        raise UserError(
            f"{out} holds a finished run (its report: {out / 'report.html'}); choose another --out"
            " or pass --overwrite"
        )
    discover(data)


def _launch(settings: Settings) -> None:
    """Choose the GPU; return where one worker trains, which this process is, else run several."""
    from alexmri.contract.launcher import Launcher, Plan, count_workers
    from alexmri.contract.signals import hold_signals

    startup = use_gpu(click.echo)
    plan = Plan("alexmri.cli", sys.argv[1:], count_workers(settings.workers_per_host, startup.gpus))
    if plan.is_distributed:
        hold_signals()
        sys.exit(Launcher(plan, os.environ, None, click.echo).run())


def _say_how_to_resume(terminal: "Terminal", code: int) -> NoReturn:
    """Print the command that goes on, and exit with `code`."""
    # torchrun starts the module, not the command.
    command = "alexmri" if sys.argv[0].endswith("cli.py") else sys.argv[0]
    again = [command, *(argument for argument in sys.argv[1:] if argument != "--overwrite")]
    terminal.say(f"to resume: {shlex.join(again)}")
    sys.exit(code)
