"""What container/train prints is what SageMaker's metric definitions find."""

import json
import re
import signal

from alexmri.aws.requests.training import METRIC_DEFINITIONS

from .conftest import PATIENCE, Tree

NUMBER = r"\d+(\.\d+)?"
RECORD = re.compile(rf"epoch=\d+;( \w+={NUMBER};)+")


def values_in(printed: str) -> dict[str, list[float]]:
    """Return every value that each definition finds, as the platform does: line by line."""
    return {
        definition["Name"]: [
            float(match[1])
            for line in printed.splitlines()
            if (match := re.search(definition["Regex"], line))
        ]
        for definition in METRIC_DEFINITIONS
    }


def records_of(printed: str) -> list[str]:
    """Return the metric lines; there is no other line that mentions a metric, and no half one."""
    assert not re.search(r"[\r\x1b\b]", printed)
    assert printed.endswith("\n")
    records = [line for line in printed.splitlines() if RECORD.fullmatch(line)]
    assert [line for line in printed.splitlines() if "epoch=" in line or "loss=" in line] == records
    return records


def check_last(tree: Tree, printed: str) -> None:
    """The last value of every figure is that of the model in model/."""
    model = json.loads((tree.root / "model" / "model.json").read_text(encoding="utf-8"))
    values, test = values_in(printed), model["metrics"]["test"]
    last = {name: found[-1] for name, found in values.items()}
    assert last["epoch"] == model["best_epoch"]
    for name, figure in (
        ("val_macro_f1", model["metrics"]["validation"]["macro_f1"]),
        ("test_loss", test["log_loss"]),
        ("test_accuracy", test["accuracy"]),
        ("test_macro_f1", test["macro_f1"]),
    ):
        assert last[name] == float(f"{figure['value']:.6g}"), name
    of_best_epoch = {
        name: found[model["best_epoch"] - 1] for name, found in values.items() if len(found) > 1
    }
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1"):
        assert last[name] == of_best_epoch[name], name


def test_every_definition_finds_its_metric_in_every_record(trained: Tree) -> None:
    records = records_of(trained.printed)
    assert len(records) == 3  # two epochs and the model that was saved
    values = values_in(trained.printed)
    assert values["epoch"][:2] == [1, 2]
    counts = {name: len(found) for name, found in values.items()}
    of_the_end = ("test_loss", "test_accuracy", "test_macro_f1")
    assert counts == {name: 1 if name in of_the_end else 3 for name in counts}
    defined = set(counts)
    assert {name for line in records for name in re.findall(r"(\w+)=", line)} == defined
    check_last(trained, trained.printed)


def test_records_come_through_a_pipe_while_the_training_runs(tree: Tree) -> None:
    process = tree.start("train", "--epochs", "300")
    assert process.stdout
    printed = ""
    # Held back in a buffer, the first lines would come after 300 epochs.
    for line in process.stdout:
        printed += line
        if line.startswith("epoch=3;"):
            break
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    printed += process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    records = records_of(printed)
    assert 4 <= len(records) < 300
    assert [line.partition(";")[0] for line in records[:3]] == ["epoch=1", "epoch=2", "epoch=3"]
    check_last(tree, printed)
