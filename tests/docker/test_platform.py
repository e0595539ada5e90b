"""The image as SageMaker runs it: train, serve, evaluate and preflight below /opt/ml."""

import http.client
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .docker_helpers import Docker, alexmri, ask, wait_for, write_hyperparameters, write_slices

pytestmark = pytest.mark.docker


def test_the_model_is_the_one_trained_without_a_container(docker_job: Path, tmp_path: Path) -> None:
    data = docker_job / "input" / "data" / "training"
    options = ("--epochs", "2", "--batch-size", "16", "--seed", "5")
    alexmri("train", "--data", str(data), "--out", str(tmp_path / "run"), *options)
    inside = (docker_job / "model" / "model.safetensors").read_bytes()
    assert inside == (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert (docker_job / "output" / "data" / "report.html").is_file()


def spoil_setting(root: Path) -> None:
    write_hyperparameters(root, epocs="2")


def empty_channel(root: Path) -> None:
    (root / "input" / "data" / "validation").mkdir()


def truncate_picture(root: Path) -> None:
    picture = next((root / "input" / "data" / "training" / "NonDemented").iterdir())
    picture.write_bytes(picture.read_bytes()[:700])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_setting, "did you mean 'epochs'?"),
        (empty_channel, "channel 'validation' is empty"),
        (truncate_picture, "cannot be read as an image"),
    ],
)
def test_a_mistake_ends_in_one_sentence_in_the_failure_file(
    docker: Docker, image: str, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    write_slices(tmp_path / "input" / "data" / "training")
    spoil(tmp_path)
    volume = f"{tmp_path}:/opt/ml"
    result = docker("run", "--rm", "--network", "none", "-v", volume, image, "train", check=False)
    assert result.returncode == 2
    failure = (tmp_path / "output" / "failure").read_text(encoding="utf-8")
    assert words in failure
    assert len(failure.splitlines()) == 1
    assert "Traceback" not in failure + result.stdout + result.stderr


def start_server(docker: Docker, name: str, image: str, model: Path) -> int:
    """Serve `model` read-only as any user without rights; return the port on this machine."""
    options = ("--user", "10001:10001", "--read-only", "--tmpfs", "/tmp")  # noqa: S108
    volume = ("--volume", f"{model}:/opt/ml/model:ro", "--publish", "127.0.0.1::8080")
    docker("run", "--detach", "--name", name, *options, *volume, image, "serve")
    port = int(docker("port", name, "8080").stdout.rpartition(":")[2])
    wait_for(lambda: ask(port, "/ping")[0] == 200)
    return port


def test_serve_answers_and_finishes_what_is_under_way_when_stopped(
    docker: Docker, image: str, docker_job: Path, containers: list[str]
) -> None:
    name = "alexmri-test-serve"
    containers.append(name)
    port = start_server(docker, name, image, docker_job / "model")
    jpeg = next((docker_job / "input" / "data" / "training" / "NonDemented").iterdir()).read_bytes()
    status, answer = ask(port, "/invocations", jpeg)
    assert status == 200
    assert set(answer["predictions"][0]["probabilities"]) == {"MildDemented", "NonDemented"}

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/invocations")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Content-Length", str(len(jpeg)))
    connection.endheaders(jpeg[:1000])
    time.sleep(1)  # until a thread of the server waits for the rest
    docker("kill", "--signal", "TERM", name)
    time.sleep(1)
    connection.send(jpeg[1000:])
    under_way = connection.getresponse()
    assert under_way.status == 200
    assert json.loads(under_way.read())["predictions"] == answer["predictions"]
    connection.close()
    assert docker("wait", name).stdout.strip() == "0"
    log = docker("logs", name)
    assert "Traceback" not in log.stdout + log.stderr
    assert "[ERROR]" not in log.stderr


def test_docker_stop_ends_an_idle_server_at_once(
    docker: Docker, image: str, docker_job: Path, containers: list[str]
) -> None:
    name = "alexmri-test-idle"
    containers.append(name)
    start_server(docker, name, image, docker_job / "model")
    began = time.monotonic()
    docker("stop", "--time", "30", name)
    assert time.monotonic() - began < 10
    assert docker("wait", name).stdout.strip() == "0"


def test_evaluate_measures_as_a_processing_job(
    docker: Docker, image: str, docker_job: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    packed = tmp_path / "model" / "model.tar.gz"
    subprocess.run(["tar", "czf", packed, "-C", docker_job / "model", "."], check=True)
    inputs = (
        *("--volume", f"{packed.parent}:/opt/ml/processing/model:ro"),
        *("--volume", f"{docker_job / 'input' / 'data' / 'training'}:/opt/ml/processing/test:ro"),
    )
    (tmp_path / "evaluation").mkdir()
    output = ("--volume", f"{tmp_path / 'evaluation'}:/opt/ml/processing/evaluation")
    bare = ("--network", "none", "--read-only", "--tmpfs", "/tmp")  # noqa: S108
    docker("run", "--rm", *bare, *inputs, *output, image, "evaluate")
    written = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert {"evaluation.json", "statistics.json", "report.html", "roc.png"} <= written
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert evaluation["test"]["accuracy"]["ci95"]


def test_preflight_tells_the_limits_of_the_container(docker: Docker, image: str) -> None:
    printed = docker("run", "--rm", "--cpus", "1", "--memory", "2g", image, "preflight").stdout
    facts = dict(line.split(": ", 1) for line in printed.splitlines())
    assert facts["cores usable here"] == "1"
    assert facts["memory usable here"] == "2.0 GiB"
    version = docker("run", "--rm", image, "alexmri", "--version").stdout.split()[-1]
    assert facts["alexmri"] == version
