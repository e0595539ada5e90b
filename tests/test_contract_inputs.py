"""What the platform says about a job: hosts, input modes of the channels, checkpoints."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alexmri.contract.inputs import check_input_modes, read_hosts
from alexmri.contract.paths import Paths, checkpoint_folder
from alexmri.errors import UserError


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


@pytest.mark.parametrize(
    "said",
    [
        {"S3DistributionType": "ShardedByS3Key"},
        {"DataSource": {"S3DataSource": {"S3DataDistributionType": "ShardedByS3Key"}}},
    ],
)
def test_files_dealt_out_to_several_hosts_are_refused(tmp_path: Path, said: Any) -> None:
    (tmp_path / "train").mkdir()
    check_input_modes({"train": said}, tmp_path, hosts=1)
    with pytest.raises(UserError, match="'train' distributes its files over.*use FullyReplicated"):
        check_input_modes({"train": said}, tmp_path, hosts=2)


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
