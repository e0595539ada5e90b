"""The door for people: the command `alexmri`.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from alexmri.aws.group import aws
from alexmri.errors import UserError
from alexmri.options import read_settings, settings_options
from alexmri.settings import Layer, Settings

if TYPE_CHECKING:
    from alexmri.contract.signals import StopRequest
    from alexmri.terminal import Terminal

EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
MODEL = click.Path(exists=True, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alexmri")
def cli() -> None:
    """Train AlexNet on brain-MRI slices, measure it honestly, use it.

    Research software. Not a medical device; not for diagnosis.
    """


cli.add_command(aws)


@cli.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def demo_data(folder: Path, seed: int) -> None:
    """Write synthetic slices of 40 made-up people into FOLDER, one folder per class."""
    from alexmri.data.phantom import write_demo_data
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    count = write_demo_data(folder, seed=seed, track=terminal.track)
    terminal.warn(f"{folder} now holds {count} SYNTHETIC slices: made-up pictures, not people")


@cli.command()
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
    from alexmri.data.audit_page import render_page
    from alexmri.data.audit_table import show_audit
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
        write_atomically(html_file, render_page(found, title=f"Audit of {data.name}"))
    show_audit(found.document)


@cli.command()
@click.option("--data", type=EXISTING_FOLDER, required=True, help="folder of class folders")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="output folder"
)
@click.option("--overwrite", is_flag=True, help="replace the run that is in the output folder")
@settings_options
def train(data: Path, out: Path, overwrite: bool, config_file: Path | None, **options: Any) -> None:
    """Train and measure a model; the same command resumes a run that was stopped."""
    settings = read_settings(config_file, options).settings
    from alexmri.contract.signals import Stopped, StopRequest
    from alexmri.evaluation.tables import show_measured
    from alexmri.terminal import choose_terminal
    from alexmri.training.folders import is_finished
    from alexmri.training.job import Job, run_job

    refuse_output(data, out, overwrite, is_finished(out))
    job = Job(
        channels={"train": data},
        settings=settings,
        output=out,
        model=out / "model",
        checkpoints=out / "checkpoints",
        start_anew=overwrite,
    )
    terminal = choose_terminal()
    with StopRequest().on(signal.SIGINT, signal.SIGTERM) as stop:
        try:
            outcome = run_job(job, terminal, stop, model_when_stopped=False)
        except Stopped:
            terminal.say("stopped before the training began: there was nothing to save")
            sys.exit(0 if stop.signal is signal.SIGTERM else 130)
    if outcome.stopped:
        say_how_to_resume(terminal, stop)
    assert outcome.evaluation is not None  # noqa: S101 - a run that was not stopped was measured
    test = outcome.evaluation["test"]
    if test:
        show_measured(test, "test")
    else:
        show_measured(outcome.evaluation["validation"], "validation (there is no test split)")
    terminal.say(f"model: {job.model}")
    terminal.say(f"report: {outcome.report}")


@cli.command()
@click.option("--data", type=EXISTING_FOLDER, required=True, help="folder of class folders")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="output folder"
)
@click.option("--folds", type=click.IntRange(2, 100), default=5, show_default=True)
@click.option("--overwrite", is_flag=True, help="replace the cross-validation in the output folder")
@click.option(
    "--keep-all-checkpoints", is_flag=True, help="keep those of finished folds too (300 MB each)"
)
@settings_options
def crossval(
    data: Path,
    out: Path,
    folds: int,
    overwrite: bool,
    keep_all_checkpoints: bool,
    config_file: Path | None,
    **options: Any,
) -> None:
    """Train and test a model per fold, so that every image is tested once, and pool the figures.

    People are kept together where they are known; --split-by slice deals slices instead. The same
    command goes on where it was stopped.
    """
    resolved = read_settings(config_file, options)
    from alexmri.contract.signals import StopRequest
    from alexmri.evaluation.tables import show_folds, show_measured, show_pooled
    from alexmri.terminal import choose_terminal
    from alexmri.training.crossval import Crossval, choose_split_by, run_crossval
    from alexmri.training.folders import is_finished

    refuse_output(data, out, overwrite, is_finished(out))
    terminal = choose_terminal()
    if resolved.sources["split_by"] == "default":
        split_by = choose_split_by(data, resolved.settings, terminal)
        resolved = read_settings(config_file, options, Layer("crossval", {"split_by": split_by}))
    plan = Crossval(data, resolved.settings, out, folds, overwrite, keep_all_checkpoints)
    with StopRequest().on(signal.SIGINT, signal.SIGTERM) as stop:
        evaluation = run_crossval(plan, terminal, stop)
    if evaluation is None:
        say_how_to_resume(terminal, stop)
    show_folds(evaluation)
    show_measured(evaluation["test"], f"all {folds} folds pooled")
    show_pooled(evaluation)
    terminal.say(f"predictions: {out / 'predictions.csv'}")
    terminal.say(f"report: {out / 'report.html'}")


@cli.command()
@click.argument("data", type=EXISTING_FOLDER)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--copies", type=click.IntRange(min=1), required=True, help="copies per image")
@settings_options
def augment(data: Path, out: Path, copies: int, config_file: Path | None, **options: Any) -> None:
    """Write DATA to OUT with augmented copies of its training images.

    The other way to augment; train on OUT with --augment none. DATA must hold train, valid and
    (optionally) test folders. Images for validation and test are copied as they are: changed ones
    would measure something else.
    """
    settings = read_settings(config_file, options).settings
    from alexmri.contract.resources import cpu_cores
    from alexmri.data.augment_copies import write_copies
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    found, added = write_copies(
        data, out, copies=copies, settings=settings, workers=cpu_cores(), terminal=terminal
    )
    terminal.say(f"{out}: {found} images of {data} and {added} augmented copies")


@cli.command()
@click.argument("bundle", type=MODEL)
@click.argument("folder", type=EXISTING_FOLDER)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="also write the figures")
def evaluate(bundle: Path, folder: Path, json_file: Path | None) -> None:
    """Measure the model BUNDLE, a directory or a model.tar.gz, on the class folders in FOLDER.

    Of a FOLDER that holds train, valid and test folders only test is measured. The figures mean
    something only for images, and people, that the model was not trained on.
    """
    from alexmri.contract.resources import cpu_cores
    from alexmri.evaluation.on_folder import evaluate_folder, evaluation_document
    from alexmri.evaluation.tables import show_measured
    from alexmri.files import write_json
    from alexmri.model.predictor import Predictor
    from alexmri.terminal import choose_terminal

    facts = evaluate_folder(
        Predictor.load(bundle), folder, workers=cpu_cores(), terminal=choose_terminal()
    )
    if json_file:
        write_json(json_file, evaluation_document(facts))
    show_measured(facts["test"], f"images in {folder}")


@cli.command()
@click.argument("bundle", type=MODEL)
@click.argument("images", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")
@click.option(
    "--one-person", is_flag=True, help="also average over all IMAGES: one person's slices"
)
def predict(bundle: Path, images: tuple[Path, ...], as_json: bool, one_person: bool) -> None:
    """Print what the model BUNDLE, a directory or a model.tar.gz, says about IMAGES."""
    if not images:
        raise UserError("no image was given; pass at least one after the model directory")
    import numpy as np

    from alexmri.model.predictor import Predictor, ranked, subject_mean

    predictor = Predictor.load(bundle)
    pixels_NCHW = np.stack([predictor.pixels(image) for image in images])
    probabilities_NK = predictor.probabilities(pixels_NCHW)
    classes = predictor.bundle.classes
    rows = [
        (str(image), ranked(classes, p)) for image, p in zip(images, probabilities_NK, strict=True)
    ]
    if one_person:
        mean = ranked(classes, subject_mean(probabilities_NK))
        rows.append((f"all {len(images)} as one person", mean))
    if as_json:
        answers = [
            {"image": image, "label": next(iter(ranking)), "probabilities": ranking}
            for image, ranking in rows
        ]
        click.echo(
            json.dumps({"model": predictor.bundle.version, "predictions": answers}, indent=2)
        )
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "answer", *(escape(name) for name in classes))
    for image, ranking in rows:
        shown = (f"{ranking[name]:.3f}" for name in classes)
        table.add_row(escape(image), escape(next(iter(ranking))), *shown)
    Console().print(table)
    click.echo("Calibrated probabilities. Research software, not for diagnosis.")


@cli.command()
@click.argument("bundle", type=MODEL)
@click.option("--onnx", is_flag=True, required=True, help="as ONNX, for runtimes without PyTorch")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="file to write (default: model.onnx in the model directory)",
)
def export(bundle: Path, onnx: bool, out: Path | None) -> None:
    """Write the model BUNDLE, a directory or a model.tar.gz, in another format.

    The file appears once onnxruntime and PyTorch agree about it. It takes decoded pictures (uint8)
    and gives logits and calibrated probabilities.
    """
    from alexmri.contract.archive import model_folder
    from alexmri.model.bundle import ONNX, load_bundle
    from alexmri.model.export import export_onnx, require_onnx

    require_onnx()
    if out is None and not (bundle / "model.json").is_file():
        raise UserError(f"{bundle} is no model directory; name the file to write with --out FILE")
    path = out or bundle / ONNX
    with model_folder(bundle) as folder:
        model = load_bundle(folder)
    export_onnx(
        path,
        model.network,
        classes=model.classes,
        image_size=model.image_size,
        temperature=model.temperature,
        pixels_NCHW=model.golden_NCHW,
    )
    click.echo(f"{path}: onnxruntime and PyTorch agree about it")


@cli.command()
@click.argument("bundle", type=EXISTING_FOLDER)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
def serve(bundle: Path, port: int) -> None:
    """Answer HTTP requests on this machine with the model directory BUNDLE."""
    from alexmri.serving.options import Options

    Options.of(os.environ)
    click.echo(f"serving {bundle} on http://127.0.0.1:{port} (GET /ping, POST /invocations)")
    # gunicorn takes this process over, as in the container; see there and serving/gunicorn_conf.py.
    command = [sys.executable, "-m", "gunicorn", "--config", "python:alexmri.serving.gunicorn_conf"]
    application = f"alexmri.serving.app:serve({str(bundle.resolve())!r})"
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    os.execv(sys.executable, [*command, "--bind", f"127.0.0.1:{port}", application])  # noqa: S606


@cli.command()
@click.option("--show-sources", is_flag=True, help="say where each value comes from")
@click.option("--model", "show_model", is_flag=True, help="show the layers of the network instead")
@settings_options
def config(show_sources: bool, show_model: bool, config_file: Path | None, **options: Any) -> None:
    """Show the settings a training with these options would have."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    resolved = read_settings(config_file, options)
    if show_model:
        show_layers(resolved.settings)
        return
    table = Table("setting", "value", *(["from"] if show_sources else []), "meaning")
    for name, value in resolved.settings.model_dump(mode="json").items():
        source = [escape(resolved.sources[name])] if show_sources else []
        meaning = Settings.model_fields[name].description or ""
        table.add_row(name, escape(json.dumps(value)), *source, escape(meaning))
    Console().print(table)


def show_layers(settings: Settings) -> None:
    """Print the layers of the network with output shapes, parameters and multiply-adds."""
    from rich.console import Console
    from rich.table import Table

    from alexmri.model.summary import summarise

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
    Console().print(table)
    click.echo("A multiplication and an addition count as two FLOPs; forward pass only.")


def refuse_output(data: Path, out: Path, overwrite: bool, finished: bool) -> None:
    """Refuse an output folder inside the data, and one with a finished run that must stay."""
    if out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"--out {out} lies inside the data folder {data}; choose another")
    if finished and not overwrite:
        raise UserError(
            f"{out} holds a finished run (its report: {out / 'report.html'}); choose another --out"
            " or pass --overwrite"
        )


def say_how_to_resume(terminal: "Terminal", stop: "StopRequest") -> NoReturn:
    """Print the command that goes on and exit as the signal asks for."""
    again = [argument for argument in sys.argv if argument != "--overwrite"]
    terminal.say(f"to resume: {shlex.join(again)}")
    sys.exit(0 if stop.signal is signal.SIGTERM else 130)


def main() -> NoReturn:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"error: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        sys.exit(2)
    sys.exit(0)
