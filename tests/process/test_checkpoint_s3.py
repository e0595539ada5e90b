"""A spot machine is taken away: another one, with empty folders, goes on from what is in S3."""

import json
import shutil
import signal
from pathlib import Path

from ..conftest import Bucket
from .conftest import Tree
from .test_train import stop_after

EPOCHS = ("--epochs", "4")


def another_machine(tree: Tree, root: Path) -> Tree:
    """Return a machine with the same job, and nothing else of the first one."""
    shutil.copytree(tree.root / "input", root / "input")
    return Tree(root)


def test_a_run_goes_on_elsewhere_to_the_same_bytes(
    tree: Tree, bucket: Bucket, tmp_path: Path
) -> None:
    s3 = ("--checkpoint-s3", bucket.url)
    process = tree.start("train", *EPOCHS, *s3)
    printed = stop_after(process, "epoch=1;", signal.SIGTERM)
    assert process.returncode == 0, printed
    (document,) = (tree.root / "checkpoints").glob("*.json")
    assert f"checkpoint {document.stem} is in {bucket.url}" in printed
    assert bucket.names() == [document.name, document.with_suffix(".safetensors").name]

    second = another_machine(tree, tmp_path / "second")
    resumed = second.run("train", *EPOCHS, *s3)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"checkpoint {document.stem} is restored from {bucket.url}" in resumed.stdout
    assert "resuming at epoch" in resumed.stdout
    assert "epoch=1; train_loss" not in resumed.stdout

    undisturbed = another_machine(tree, tmp_path / "undisturbed")
    assert undisturbed.run("train", *EPOCHS).returncode == 0
    for expected in (undisturbed.root / "model").iterdir():
        assert (second.root / "model" / expected.name).read_bytes() == expected.read_bytes()
    rows = (second.root / "output" / "data" / "metrics.jsonl").read_text(encoding="utf-8")
    assert [json.loads(row)["epoch"] for row in rows.splitlines()] == [1, 2, 3, 4]
    assert "writer.json" not in bucket.names()

    # A finished run and its checkpoints make way for the next, here and in S3.
    third = second.run("train", "--epochs", "1", *s3)
    assert third.returncode == 0, third.stdout + third.stderr
    assert "training starts anew" in third.stdout
    assert document.name not in bucket.names()


def test_a_bucket_that_cannot_be_used_ends_the_job_before_it_begins(
    tree: Tree, bucket: Bucket
) -> None:
    result = tree.run("train", "--checkpoint-s3", "s3://no-such-bucket/run")
    assert result.returncode == 2
    assert tree.failure.strip() == (
        "s3://no-such-bucket/run: there is no such bucket; make it, or correct the name"
    )
    assert "Traceback" not in result.stdout + result.stderr
    tree.extra = {"ALEXMRI_CHECKPOINT_S3": "bucket/run"}
    assert tree.run("train").returncode == 2
    assert "setting 'checkpoint_s3' is 'bucket/run' in the environment: it must look like" in (
        tree.failure
    )
