"""`alexmri evaluate, predict, export, serve`: what is done with a trained model."""

import json
from pathlib import Path
from typing import Literal

import click

from alexmri.errors import UserError
from alexmri.options import command

EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
MODEL = click.Path(exists=True, path_type=Path)

LOOPBACK = "127.0.0.1"


@command()
@click.argument("bundle", type=MODEL)
@click.argument("folder", type=EXISTING_FOLDER)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="also write the figures")
@click.option("--against", type=MODEL, help="another model to compare with on the same images")
@click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="what to do with unreadable images; skip = leave them out",
)
def evaluate(
    bundle: Path,
    folder: Path,
    json_file: Path | None,
    against: Path | None,
    on_bad_image: Literal["fail", "skip"],
) -> None:
    """Measure the model BUNDLE on the class folders in FOLDER.

    BUNDLE is a directory or a model.tar.gz. Of a FOLDER that holds train, valid and test folders
    only test is measured. The figures mean something only for images, and people, that the model
    was not trained on.
    """
    _use_gpu()
    from alexmri.commands.tables import show_measured
    from alexmri.contract.resources import cpu_cores
    from alexmri.evaluation.evaluate import evaluate_folder, evaluation_document
    from alexmri.evaluation.interpretation import compared_with_model
    from alexmri.files import write_json
    from alexmri.model.predictor import Predictor
    from alexmri.terminal import choose_terminal

    facts = evaluate_folder(
        Predictor.load(bundle),
        folder,
        workers=cpu_cores(),
        terminal=choose_terminal(),
        on_bad_image=on_bad_image,
        against=Predictor.load(against) if against else None,
    )
    if json_file:
        write_json(json_file, evaluation_document(facts))
    show_measured(facts["test"], f"images in {folder}")
    if facts["against"]:
        for each in compared_with_model(facts["against"]):
            click.echo(f"{each.finding} {each.difference}")


@command()
@click.argument("bundle", type=MODEL)
@click.argument("images", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")
@click.option(
    "--one-subject", is_flag=True, help="also average over all IMAGES: one person's slices"
)
def predict(bundle: Path, images: tuple[Path, ...], as_json: bool, one_subject: bool) -> None:
    """Print what the model BUNDLE says about IMAGES.

    BUNDLE is a directory or a model.tar.gz.
    """
    if not images:
        raise UserError("no image was given; pass at least one after the model directory")
    _use_gpu()
    import numpy as np

    from alexmri.model.predictor import Predictor, ranked, subject_mean

    predictor = Predictor.load(bundle)
    pixels_NCHW = np.stack([predictor.pixels(image) for image in images])
    probabilities_NK = predictor.probabilities(pixels_NCHW)
    classes = predictor.bundle.classes
    rows = [
        (str(image), ranked(classes, p)) for image, p in zip(images, probabilities_NK, strict=True)
    ]
    if one_subject:
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
    from rich.markup import escape
    from rich.table import Table

    from alexmri.terminal import print_table

    table = Table("image", "answer", *(escape(name) for name in classes))
    for image, ranking in rows:
        shown = (f"{ranking[name]:.3f}" for name in classes)
        table.add_row(escape(image), escape(next(iter(ranking))), *shown)
    print_table(table)
    click.echo("Calibrated probabilities. Research software, not for diagnosis.")


@command()
@click.argument("bundle", type=MODEL)
@click.option("--onnx", is_flag=True, required=True, help="as ONNX, for runtimes without PyTorch")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="file to write (default: model.onnx in the model directory)",
)
def export(bundle: Path, onnx: bool, out: Path | None) -> None:
    """Write the model BUNDLE in another format.

    BUNDLE is a directory or a model.tar.gz. The file appears once onnxruntime and PyTorch agree
    about it. It takes decoded images (uint8) and gives logits and calibrated probabilities.
    """
    from alexmri.contract.archive import model_folder
    from alexmri.model.bundle import ONNX, load_bundle
    from alexmri.model.onnx import export_onnx, require_onnx

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
        temperature=model.temperature,
        pixels_NCHW=model.golden_NCHW,
        preprocessing=model.preprocessing,
    )
    click.echo(f"{path}: onnxruntime and PyTorch agree about it")


@command()
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
def serve(bundle: Path, port: int) -> None:
    """Answer HTTP requests with the model directory BUNDLE.

    Only this machine can ask.
    """
    from alexmri.serving.start import become_gunicorn, check

    _use_gpu()
    check(bundle, LOOPBACK, port, "--port")
    click.echo(f"serving {bundle} on http://{LOOPBACK}:{port} (GET /ping, POST /invocations)")
    become_gunicorn(LOOPBACK, port, bundle.resolve())


def _use_gpu() -> None:
    """Use the GPU or do without, as `train` decides; only a warning is told, beside the answer."""
    from alexmri.contract.gpu import use_gpu

    use_gpu(lambda line: click.echo(line, err=True) if line.startswith("warning: ") else None)
