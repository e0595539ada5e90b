"""`alexmri evaluate, predict, export, serve`: what is done with a trained model."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from alexmri.errors import UserError
from alexmri.options import command, subgroups_option

if TYPE_CHECKING:
    from alexmri.data.pixels import Pixels
    from alexmri.model.predictor import Predictor

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
@subgroups_option
def evaluate(
    bundle: Path,
    folder: Path,
    json_file: Path | None,
    against: Path | None,
    on_bad_image: Literal["fail", "skip"],
    subgroups: str | None,
) -> None:
    """Measure the model BUNDLE on the class folders in FOLDER.

    BUNDLE is a directory or a model.tar.gz. Of a FOLDER that holds train, valid and test folders
    only test is measured. The figures mean something only for images, and people, that the model
    was not trained on.
    """
    from alexmri.data.groups_table import parse_columns

    columns = parse_columns(subgroups) if subgroups is not None else ()
    _use_gpu()
    from alexmri.contract.resources import cpu_cores
    from alexmri.evaluation.evaluate import evaluate_folder, evaluation_document
    from alexmri.evaluation.interpretation import compared_with_model, describe_external
    from alexmri.evaluation.tables import show_measured, show_subgroups
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
        subgroups=columns,
    )
    if json_file:
        write_json(json_file, evaluation_document(facts))
    show_measured(facts["test"], f"images in {folder}")
    if facts["subgroups"]:
        show_subgroups(facts["subgroups"])
    for sentence in describe_external(facts["external"]):
        click.echo(sentence)
    if facts["against"]:
        for each in compared_with_model(facts["against"]):
            click.echo(f"{each.finding} {each.difference}")


@command()
@click.argument("bundle", type=MODEL)
@click.argument("images", type=click.Path(exists=True, path_type=Path), nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")
@click.option(
    "--one-subject", is_flag=True, help="also average over all IMAGES: one person's slices"
)
def predict(bundle: Path, images: tuple[Path, ...], as_json: bool, one_subject: bool) -> None:
    """Print what the model BUNDLE says about IMAGES.

    BUNDLE is a directory or a model.tar.gz. IMAGES are slices, scans (DICOM, NIfTI) or folders of
    them. A scan is cut as the training data was; its slices are answered one by one and as one
    person.
    """
    if not images:
        raise UserError("no image was given; pass at least one after the model directory")
    _use_gpu()
    import numpy as np

    from alexmri.model.predictor import Predictor, ranked, subject_mean

    predictor = Predictor.load(bundle)
    classes = predictor.bundle.classes
    found = list(_read(images, predictor))
    if not found:
        raise UserError("there is no image in the folders given; pass slices or scans")
    probabilities_NK = predictor.probabilities(np.concatenate([pixels for *_, pixels in found]))
    rows: list[tuple[str, dict[str, float]]] = []
    ends = np.cumsum([len(names) for _, names, _ in found])
    for (path, names, _), part_NK in zip(found, np.split(probabilities_NK, ends), strict=False):
        rows += [(name, ranked(classes, p_K)) for name, p_K in zip(names, part_NK, strict=True)]
        if len(names) > 1:
            mean = ranked(classes, subject_mean(part_NK))
            rows.append((f"{path}: all {len(names)} as one person", mean))
    if one_subject:
        mean = ranked(classes, subject_mean(probabilities_NK))
        rows.append((f"all {len(probabilities_NK)} as one person", mean))
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

    table = Table("image", "answer", "probability", "other classes")
    for image, ranking in rows:
        (answer, probability), *others = ranking.items()
        rest = " ".join(f"{name}={value:.3f}" for name, value in others)
        table.add_row(escape(image), escape(answer), f"{probability:.3f}", escape(rest))
    print_table(table)
    click.echo("Calibrated probabilities. Research software, not for diagnosis.")


def _read(
    images: Sequence[Path], predictor: "Predictor"
) -> Iterator[tuple[Path, list[str], "Pixels"]]:
    """Yield the path of each image or scan, the names of its slices, and their pixels (N, C, H, W).

    DICOM files of one series are one scan, in the place of the first.
    """
    import numpy as np

    from alexmri.data.folders import NOTE, files_below, kind_of
    from alexmri.data.pixels import read_bytes
    from alexmri.data.scans import group, is_scan, read_scan
    from alexmri.data.slicing import NotAScanError, as_png, cut, eight_bit

    paths: list[Path] = []
    for path in images:
        below = files_below(path) if path.is_dir() else [path]
        paths += [each for each in below if each == path or kind_of(each) != NOTE]
    scans = {path: data for path in paths if is_scan(data := read_bytes(path))}
    names, files = list(scans), list(scans.values())
    series = {names[members[0]]: [files[i] for i in members] for members in group(files)}
    slicing = predictor.bundle.slicing
    for path in paths:
        if path not in scans:
            yield path, [str(path)], predictor.pixels(path)[None]
        elif path in series:
            try:
                volume = read_scan(series[path], voi=slicing.intensity == "voi")
                slices = cut(volume, slicing)
            except NotAScanError as error:
                click.echo(f"warning: left out: {path}, because {error}", err=True)
                continue
            except UserError as error:
                raise UserError(f"{path} cannot be used: {error}") from None
            for note in volume.notes:
                click.echo(f"warning: {path}: {note}", err=True)
            pixels = [predictor.pixels(as_png(eight_bit(each.pixels_HW))) for each in slices]
            yield path, [f"{path}: {slicing.plane} {s.index}" for s in slices], np.stack(pixels)


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
    from alexmri.terminal import choose_terminal

    require_onnx()
    if out is None and not (bundle / "model.json").is_file():
        raise UserError(
            f"{bundle} is not a model directory; name the file to write with --out FILE"
        )
    path = out or bundle / ONNX
    with model_folder(bundle) as folder:
        model = load_bundle(folder)
    with choose_terminal().working(f"writing {path.name} and comparing it with PyTorch"):
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
