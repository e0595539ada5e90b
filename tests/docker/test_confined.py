"""The image with as little as possible: no network, no rights, no writable root, small limits."""

import json
import os
import shutil
from pathlib import Path

import pytest

from .container import new_name
from .docker_helpers import Docker, Result, ask, wait_for, write_hyperparameters, write_slices

pytestmark = pytest.mark.docker
# A user no passwd file knows, unless only this one's folders are at hand.
USER = 54321 if os.getuid() == 0 else os.getuid()
CONFINED = (
    *("--network", "none", "--read-only", "--tmpfs", "/tmp"),  # noqa: S108
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{USER}:{USER}"),
)


def own(folder: Path) -> None:
    """Give a tree to the user of the container, as far as this user can."""
    for path in (folder, *folder.rglob("*")):
        if os.getuid() == 0:
            os.chown(path, USER, USER)


@pytest.fixture(scope="module")
def confined_job(
    docker: Docker, image: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """A job after `train` ran with nothing but its three folders to write in."""
    root = tmp_path_factory.mktemp("confined")
    write_slices(root / "input" / "data" / "training")
    write_hyperparameters(root, epochs="1", batch_size="16")
    mounts = ["--volume", f"{root / 'input'}:/opt/ml/input:ro"]
    for name in ("model", "output", "checkpoints"):
        (root / name).mkdir()
        mounts += ["--volume", f"{root / name}:/opt/ml/{name}"]
    own(root)
    return root, docker("run", "--rm", *CONFINED, *mounts, image, "train")


@pytest.mark.promise
def test_train_needs_no_network_no_rights_and_no_writable_root(
    confined_job: tuple[Path, Result],
) -> None:
    """Confined: train needs no network, no rights, no known user and no writable root but /tmp."""
    root, result = confined_job
    assert (root / "model" / "model.json").is_file()
    assert (root / "output" / "data" / "report.html").stat().st_uid == USER
    assert "\nresources: " in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.promise
def test_evaluate_needs_no_network_no_rights_and_no_writable_root(
    docker: Docker, image: str, confined_job: tuple[Path, Result], tmp_path: Path
) -> None:
    """Confined: evaluate needs none of them either."""
    root, _ = confined_job
    processing = tmp_path / "processing"
    shutil.copytree(root / "model", processing / "model")
    shutil.copytree(root / "input" / "data" / "training", processing / "test")
    (processing / "evaluation").mkdir()
    own(tmp_path)
    docker("run", "--rm", *CONFINED, "--volume", f"{tmp_path}:/opt/ml", image, "evaluate")
    assert (processing / "evaluation" / "evaluation.json").is_file()


@pytest.mark.promise
def test_serve_needs_no_network_no_rights_and_no_writable_root(
    docker: Docker, image: str, confined_job: tuple[Path, Result], containers: list[str]
) -> None:
    """Confined: serve needs none of them either."""
    name = new_name()
    containers.append(name)
    model = ("--volume", f"{confined_job[0] / 'model'}:/opt/ml/model:ro")
    docker("run", "--detach", "--name", name, *CONFINED, *model, image, "serve")
    script = "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/ping', timeout=2)"
    ping = ("exec", name, "python3", "-c", script)
    wait_for(lambda: docker(*ping, check=False).returncode == 0)
    log = docker("logs", name)
    assert "resources: " in log.stdout
    assert "[ERROR]" not in log.stderr


def test_serve_listens_where_the_platform_says(
    docker: Docker, image: str, confined_job: tuple[Path, Result], containers: list[str]
) -> None:
    name = new_name()
    containers.append(name)
    options = ("--env", "SAGEMAKER_BIND_TO_PORT=8123", "--publish", "127.0.0.1::8123")
    model = ("--volume", f"{confined_job[0] / 'model'}:/opt/ml/model:ro")
    docker("run", "--detach", "--name", name, *options, *model, image, "serve")
    port = int(docker("port", name, "8123").stdout.rpartition(":")[2])
    wait_for(lambda: ask(port, "/ping")[0] == 200)


@pytest.mark.promise
def test_a_disk_too_small_is_told_before_decoding(
    docker: Docker, image: str, tmp_path: Path
) -> None:
    """Resources: a disk too small for the decoded pictures is told before any is decoded."""
    write_slices(tmp_path / "input" / "data" / "training")
    write_hyperparameters(tmp_path, image_size="512")
    options = ("--tmpfs", "/tmp:size=8m", "--volume", f"{tmp_path}:/opt/ml")  # noqa: S108
    assert docker("run", "--rm", *options, image, "train", check=False).returncode == 2
    failure = (tmp_path / "output" / "failure").read_text(encoding="utf-8")
    assert failure.startswith("the images need ")
    assert " MiB on disk, and /tmp/.cache/alexmri has 8 MiB; make room there, or name" in failure
    assert "ALEXMRI_CACHE_DIR" in failure


@pytest.mark.promise
@pytest.mark.parametrize("view", ["private", "host"])
def test_the_limits_are_found_in_either_view_of_the_cgroups(
    docker: Docker, image: str, view: str
) -> None:
    """Resources: the limits of CPU, memory and /dev/shm are found"""
    limits = ("--cpus", "1", "--memory", "1500m", "--shm-size", "96m", "--cgroupns", view)
    lines = docker("run", "--rm", *limits, image, "preflight").stdout.splitlines()
    facts = dict(line.split(": ", 1) for line in lines)
    assert facts["cores usable here"] == "1"
    assert facts["memory usable here"] == "1.5 GiB"
    assert facts["shared memory"] == "96 MiB"


@pytest.mark.promise
def test_serve_on_a_gpu_instance_without_a_gpu_ends_with_one_sentence(
    docker: Docker, image: str, tmp_path: Path
) -> None:
    """GPU: on a GPU instance without a usable GPU it ends with one sentence."""
    config = tmp_path / "input" / "config" / "resourceconfig.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"current_instance_type": "ml.g5.xlarge"}), encoding="utf-8")
    volume = ("--volume", f"{tmp_path}:/opt/ml:ro")
    for name in ("serve", "preflight"):
        result = docker("run", "--rm", *volume, image, name, check=False)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ml.g5.xlarge is a GPU instance, but ")
