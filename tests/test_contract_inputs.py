"""What the platform says about a job: hosts, delivery of the channels, SM_* variables."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alexmri.contract.hosts import Hosts, read_hosts
from alexmri.contract.input_modes import check_input_modes
from alexmri.contract.paths import Paths, checkpoint_folder
from alexmri.contract.sm_environment import sm_environment
from alexmri.errors import UserError

THREE = Hosts("algo-10", ("algo-1", "algo-10", "algo-2"))


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_rank_is_the_place_in_the_list_as_given(tmp_path: Path) -> None:
    names = ["algo-1", "algo-10", "algo-2"]
    path = write(tmp_path / "r.json", {"current_host": "algo-2", "hosts": names, "topology": None})
    hosts = read_hosts(path)
    assert hosts
    assert (hosts.rank, hosts.first, hosts.interface) == (2, "algo-1", "eth0")
    assert read_hosts(tmp_path / "nothing.json") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ([1], "must hold one JSON object, not list"),
        ({"current_host": "algo-1"}, "names no hosts"),
        ({"current_host": "algo-1", "hosts": "algo-1"}, "names no hosts"),
        ({"current_host": "algo-3", "hosts": ["algo-1"]}, "which is not among its hosts algo-1"),
        ({"hosts": ["algo-1"]}, '"current_host": null'),
        ({"current_host": "a", "hosts": ["a", "a"]}, "names a host twice"),
        ({"current_host": "", "hosts": [""]}, "names no hosts"),
    ],
)
def test_hosts_that_make_no_sense(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_hosts(write(tmp_path / "resourceconfig.json", content))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"TrainingInputMode": "Pipe"}, "'train' comes in Pipe mode.*use File or FastFile mode"),
        ({"TrainingInputMode": "File", "RecordWrapperType": "RecordIO"}, "RecordIO.; use None"),
        ({"S3DataType": "AugmentedManifestFile"}, "use S3Prefix"),
        ({"DataSource": {"S3DataSource": {"S3DataType": "AugmentedManifestFile"}}}, "use S3Prefix"),
        ({"AttributeNames": ["source-ref", "class"]}, "augmented manifest"),
        ("File", "must describe the channel 'train' by an object"),
    ],
)
def test_channels_that_are_no_files_are_refused(tmp_path: Path, said: Any, words: str) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=words):
        check_input_modes({"train": said}, tmp_path)


@pytest.mark.parametrize("name", ["", "../train", "t" * 65, "a\0b", "t" * 5000])
def test_a_channel_by_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="a name has 1 to 64 letters"):
        check_input_modes({name: {}}, tmp_path)


def test_pipes_and_augmented_manifests_are_also_known_by_sight(tmp_path: Path) -> None:
    line = json.dumps({"source-ref": "s3://bucket/1.png", "class": 0})
    write(tmp_path / "a" / "train" / "train.manifest", line + "\n" + line)
    with pytest.raises(UserError, match="'train' is an augmented manifest"):
        check_input_modes({}, tmp_path / "a")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "train_0")
    with pytest.raises(UserError, match="'train' comes in Pipe mode"):
        check_input_modes({}, tmp_path / "b")


def test_a_channel_without_its_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="names the channel 'validation', but there is no folder"):
        check_input_modes({"train": {}, "validation": {}, "code": {}}, tmp_path)


@pytest.mark.parametrize(
    ("named", "folder"),
    [(None, "checkpoints"), ("/opt/ml/checkpoints/x", "checkpoints/x"), ("/mnt/c", "/mnt/c")],
)
def test_the_platform_names_the_folder_of_checkpoints(
    tmp_path: Path, named: str | None, folder: str
) -> None:
    if named:
        write(tmp_path / "input/config/checkpointconfig.json", {"LocalPath": named, "S3Uri": "s3:"})
    assert checkpoint_folder(Paths(tmp_path)) == tmp_path / folder


@pytest.mark.parametrize("named", ["checkpoints", 3, ["/opt/ml/checkpoints"], "/opt/ml/a\0b"])
def test_a_folder_of_checkpoints_that_is_no_path_is_refused(tmp_path: Path, named: object) -> None:
    write(tmp_path / "input/config/checkpointconfig.json", {"LocalPath": named})
    with pytest.raises(UserError, match="it must be an absolute path"):
        checkpoint_folder(Paths(tmp_path))


@pytest.mark.parametrize("groups", ["x", 3, [1], {"a": 1}, [None], [["a"]]])
def test_odd_groups_of_instances_do_no_harm(tmp_path: Path, groups: object) -> None:
    said = {"instance_groups": groups, "current_group_name": ["a"]}
    hosts = Hosts(document=said)
    made = sm_environment(Paths(tmp_path), hosts, {"deep": "[" * 100_000}, {}, {})
    assert made["SM_CURRENT_INSTANCE_GROUP_HOSTS"] == '["algo-1"]'


def test_a_channel_whose_name_is_no_text_does_no_harm(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    Path(os.fsdecode(os.fsencode(paths.data) + b"/\xff")).mkdir(parents=True)
    assert os.fsencode(sm_environment(paths, Hosts(), {}, {}, {})["SM_CHANNEL_\udcff"])


def test_both_dialects_of_sm_variables(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    (paths.data / "train").mkdir(parents=True)
    given = {"epochs": "3", "learning-rate": "1e-3", "recipe": '"best"', "sagemaker_program": "x"}
    existing = {"SM_MODEL_DIR": "/kept", "AWS_REGION": "eu-west-1", "TRAINING_JOB_NAME": "job"}
    made = sm_environment(paths, THREE, given, {"train": {"ContentType": "image/png"}}, existing)
    assert made["SM_MODEL_DIR"] == "/kept"
    assert made["SM_HOSTS"] == '["algo-1","algo-10","algo-2"]'
    assert (made["SM_CURRENT_HOST"], made["SM_CURRENT_HOST_RANK"]) == ("algo-10", "1")
    assert (made["SM_MASTER_ADDR"], made["SM_MASTER_PORT"]) == ("algo-1", "7777")
    assert made["SM_HPS"] == '{"epochs":3,"learning-rate":0.001,"recipe":"best"}'
    assert made["SM_HP_LEARNING-RATE"] == made["SM_HP_LEARNING_RATE"] == "0.001"
    assert made["SM_USER_ARGS"] == '["--epochs","3","--learning-rate","0.001","--recipe","best"]'
    assert made["SM_CHANNEL_TRAIN"] == str(tmp_path / "input/data/train")
    assert made["SM_OUTPUT_FAILURE"] == str(tmp_path / "output/failure")
    assert made["SAGEMAKER_JOB_NAME"] == "job"
    assert json.loads(made["SM_FRAMEWORK_PARAMS"]) == {"sagemaker_program": "x"}
    assert json.loads(made["SM_TRAINING_ENV"])["current_host"] == "algo-10"


def test_what_no_environment_can_hold_is_left_out(tmp_path: Path) -> None:
    given = {"a=b": "1", "zero": '"\\u0000"', "long": "x" * 200_000}
    made = sm_environment(Paths(tmp_path), Hosts(), given, {}, {})
    assert not [name for name in made if name.startswith("SM_HP_")]
