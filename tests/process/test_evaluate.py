"""container/evaluate as a processing job, and container/preflight."""

import json
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from .conftest import PATIENCE, Tree


@pytest.fixture
def job(trained: Tree, tmp_path: Path) -> Tree:
    """A processing job as the platform lays it out: model.tar.gz and a test folder."""
    tree = Tree(tmp_path / "ml", extra={"TMPDIR": str(tmp_path / "tmp")})
    (tmp_path / "tmp").mkdir()
    pack(trained.root / "model", tree.root / "processing" / "model" / "model.tar.gz")
    shutil.copytree(trained.root / "input" / "data" / "training", tree.root / "processing" / "test")
    config = tree.root / "config"
    config.mkdir()
    (config / "processingjobconfig.json").write_text("{}", encoding="utf-8")
    return tree


def pack(model: Path, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in sorted(model.iterdir()):
            tar.add(path, arcname=path.name)


def evaluation_of(tree: Tree) -> Path:
    return tree.root / "processing" / "evaluation"


def message_of(tree: Tree) -> str:
    return (tree.root / "output" / "message").read_text(encoding="utf-8")


def state_of(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*"))


def test_a_packed_model_is_measured_and_reported(job: Tree, trained: Tree) -> None:
    processing = job.root / "processing"
    names = [path.relative_to(processing / "test") for path in processing.rglob("*.jpg")]
    # `26 (2).jpg` shows subject 2.
    subjects = [f"{name.parent}/{name.stem.partition(' ')[2]}" for name in names]
    rows = [f"{name},{who},{who[0]}\n" for name, who in zip(names, subjects, strict=True)]
    table = processing / "test" / "groups.csv"
    table.write_text("path,subject,site\n" + "".join(rows), encoding="utf-8")
    before = state_of(processing / "model") + state_of(processing / "test")
    result = job.run("evaluate", "--subgroups", "site")
    assert result.returncode == 0, result.stderr
    assert state_of(processing / "model") + state_of(processing / "test") == before
    assert not list(Path(job.extra["TMPDIR"]).iterdir())
    assert not (job.root / "output" / "message").exists()

    written = evaluation_of(job)
    assert {path.name for path in written.iterdir()} == {
        *("evaluation.json", "statistics.json", "report.html"),
        *("confusion.png", "confusion_subjects.png", "precision_recall.png", "reliability.png"),
        *("roc.png", "roc_demented.png"),
    }
    evaluation = json.loads((written / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["test"]["images"] == 48
    assert evaluation["test"]["resampled_by"] == "subject"
    test = evaluation["test"]
    assert test["demented"]["negative_class"] == "NonDemented"
    assert test["baselines"]["nearest_neighbour"] is None  # the training images are not here
    assert test["calibration"]["before"]["ece"] >= 0
    line = result.stdout.splitlines()[-2]
    assert line == " ".join(
        f"test_{name}={test[key]['value']:.6g};"
        for name, key in (("loss", "log_loss"), ("accuracy", "accuracy"), ("macro_f1", "macro_f1"))
    )
    model = json.loads((trained.root / "model" / "model.json").read_text(encoding="utf-8"))
    assert evaluation["model"] == model["files"]["model.safetensors"][:12]

    statistics = json.loads((written / "statistics.json").read_text(encoding="utf-8"))
    block = statistics["multiclass_classification_metrics"]
    assert block["accuracy"]["value"] == test["accuracy"]["value"]
    assert set(block["confusion_matrix"]) == set(model["classes"])

    report = (written / "report.html").read_text(encoding="utf-8")
    trained_on = evaluation["protocol"]["images_in_training"]
    assert evaluation["protocol"]["trained_on_these_images"] is True
    assert 0 < trained_on < 48  # all are measured, and some were kept for validation and test
    assert f"The model was trained with {trained_on} of the images measured here" in report
    assert f"evaluation of model {evaluation['model']}" in report
    pictures = report.count("<img ")
    assert 6 <= pictures <= 6 + 2 * 12  # plots, and a picture with an overlay for each mistake
    assert pictures % 2 == 0
    assert [group["images"] for group in evaluation["subgroups"]["columns"][0]["subgroups"]] == [
        *(24, 24)
    ]
    external = evaluation["external"]
    assert external["is_external"] is False
    assert external["images_in_training"] + external["images_held_out"] == 48
    assert f"NOT external: {trained_on} of the 48 images were in the training" in report
    for section in ("Class by class (test set)", "Settings of the training", "By site"):
        assert section in report
    for absent in ("<h2>Training</h2>", '<th scope="col">Validation</th>', ">None<"):
        assert absent not in report


def test_an_unpacked_model_is_measured_too_and_only_on_the_test_folder(
    job: Tree, trained: Tree
) -> None:
    processing = job.root / "processing"
    shutil.rmtree(processing / "model")
    shutil.copytree(trained.root / "model", processing / "model")
    (processing / "test").rename(processing / "all")
    for part in ("train", "valid", "test"):
        shutil.copytree(processing / "all", processing / "test" / part)
    next((processing / "test" / "test" / "NonDemented").iterdir()).unlink()
    (job.root / "output").mkdir()
    (job.root / "output" / "message").write_text("the last job failed", encoding="utf-8")
    result = job.run("evaluate")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((evaluation_of(job) / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["test"]["images"] == 47
    assert not (job.root / "output" / "message").exists()  # that of an earlier job
    report = (evaluation_of(job) / "report.html").read_text(encoding="utf-8")
    # One of the images it was trained with is missing; the rest are still what they are.
    assert evaluation["protocol"]["trained_on_these_images"] is True
    assert "The model was trained with" in report


def test_folders_can_be_given(trained: Tree, tmp_path: Path) -> None:
    model, data = trained.root / "model", trained.root / "input" / "data" / "training"
    arguments = ("--model", str(model), "--test", str(data), "--evaluation", str(tmp_path / "out"))
    assert trained.run("evaluate", *arguments).returncode == 0
    assert (tmp_path / "out" / "evaluation.json").is_file()


def remove_model(job: Tree) -> None:
    shutil.rmtree(job.root / "processing" / "model")


def truncate_model(job: Tree) -> None:
    packed = job.root / "processing" / "model" / "model.tar.gz"
    packed.write_bytes(packed.read_bytes()[:100_000])


def pack_half_a_model(job: Tree) -> None:
    packed = job.root / "processing" / "model" / "model.tar.gz"
    half = job.root / "half"
    half.mkdir()
    subprocess.run(["tar", "xzf", packed, "-C", half, "model.json"], check=True)
    pack(half, packed)


def remove_pictures(job: Tree) -> None:
    shutil.rmtree(job.root / "processing" / "test")
    (job.root / "processing" / "test").mkdir()


def spoil_output(job: Tree) -> None:
    evaluation_of(job).write_text("a file where the folder should be", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove_model, "processing/model is not a model: it does not exist"),
        (truncate_model, "model.tar.gz is not accepted: Compressed file ended before"),
        (pack_half_a_model, "model/model.tar.gz is incomplete: model.safetensors is missing"),
        (remove_pictures, "processing/test has no class folders"),
        (spoil_output, "processing/evaluation cannot be made"),
    ],
)
def test_a_mistake_ends_in_one_sentence_in_the_message(
    job: Tree, spoil: object, words: str
) -> None:
    assert callable(spoil)
    spoil(job)
    result = job.run("evaluate")
    assert result.returncode == 2, result.stdout + result.stderr
    assert words in message_of(job)
    assert "\n" not in message_of(job)
    assert "Traceback" not in message_of(job) + result.stdout + result.stderr
    assert not list(Path(job.extra["TMPDIR"]).iterdir())


def test_the_message_is_a_kilobyte_of_valid_utf8(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "ml")
    nowhere = tmp_path / "/".join(["Ölfaß" * 20] * 7)
    assert tree.run("evaluate", "--model", str(nowhere)).returncode == 2
    written = (tree.root / "output" / "message").read_bytes()
    assert 1020 <= len(written) <= 1024
    assert written.decode("utf-8").startswith(str(tmp_path))


@pytest.mark.parametrize("options", [("--modle", "m"), ("m",), ("--test",)])
def test_a_bad_option_ends_in_one_sentence_too(tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = Tree(tmp_path)
    result = tree.run("evaluate", *options)
    assert result.returncode == 2
    written = (tree.root / "output" / "message").read_text(encoding="utf-8")
    assert options[0] in written
    assert written.endswith("evaluate --help lists the options")
    assert written in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_sigterm_ends_it_and_leaves_nothing_behind(job: Tree) -> None:
    process = job.start("evaluate")
    temporary = Path(job.extra["TMPDIR"])
    deadline = time.monotonic() + PATIENCE
    while not list(temporary.glob("alexmri-model-*")):  # then it unpacks and loads the model
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 143, printed
    assert "Traceback" not in printed
    assert not list(temporary.iterdir())
    assert not list(evaluation_of(job).iterdir())


def test_preflight_prints_one_fact_a_line(tmp_path: Path) -> None:
    result = Tree(tmp_path).run("preflight")
    assert result.returncode == 0, result.stderr
    facts = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert facts["device"] in ("cpu", "cuda")
    assert {"NVIDIA driver", "torch", "torch built for CUDA", "memory usable here"} <= set(facts)
    assert int(facts["cores usable here"]) <= int(facts["cores of the machine"])
