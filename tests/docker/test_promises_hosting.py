"""What our image promises about `serve`; requests and answers have tests of their own."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import Training
from .hosting import SECONDS_TO_STOP, Endpoint

pytestmark = [pytest.mark.docker, pytest.mark.promise]
PORT = "8765"
CLIENTS, PINGS = 8, 20


@dataclass(frozen=True)
class Served:
    """What was seen of an endpoint under load, from its start to its end."""

    answers: list[tuple[int, bytes]]
    pings: list[bool]
    code: int
    seconds: float
    log: str


@pytest.fixture(scope="module")
def served(
    training: Training, slices: Path, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    """Serve the trained model on a port of the platform's choice, as nobody in particular."""
    folder = tmp_path_factory.mktemp("endpoint")
    picture = next((slices / "NonDemented").iterdir()).read_bytes()
    environment = {
        "SAGEMAKER_BIND_TO_PORT": PORT,
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
    }
    options = ["--user", "10001:10001", "--read-only", "--tmpfs", "/tmp"]  # noqa: S108
    endpoint = Endpoint(image, training.job.artifact(), folder, environment, options)
    answers: list[tuple[int, bytes]] = []
    enough = threading.Event()

    def load() -> None:
        while not enough.is_set():
            answers.append(endpoint.invoke(picture, "image/jpeg"))

    with endpoint:
        clients = [threading.Thread(target=load) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        pings = [endpoint.is_healthy() for _ in range(PINGS)]
        enough.set()
        for client in clients:
            client.join()
        code, seconds = endpoint.stop()
        return Served(answers, pings, code, seconds, endpoint.container.log())


def test_it_serves_a_read_only_model(served: Served) -> None:
    """Serving: a read-only /opt/ml/model is enough, on the port of SAGEMAKER_BIND_TO_PORT."""
    assert len(served.answers) >= CLIENTS, served.log
    assert {status for status, _ in served.answers} == {200}, served.log
    (prediction,) = json.loads(served.answers[0][1])["predictions"]
    assert set(prediction["probabilities"]) == {"MildDemented", "NonDemented"}


def test_pings_are_answered_in_time(served: Served) -> None:
    """Serving: every ping is answered within 2 s, also under load."""
    assert served.pings == [True] * PINGS, served.log


def test_sigterm_ends_a_server_in_time(served: Served) -> None:
    """Serving: SIGTERM ends it with exit code 0 within 30 s."""
    assert served.code == 0, served.log
    assert served.seconds < SECONDS_TO_STOP


def test_a_model_that_is_none_ends_the_server(image: str, tmp_path: Path) -> None:
    """Serving: without a model it ends at once, with the reason and without a good ping."""
    endpoint = Endpoint(image, empty_archive(tmp_path), tmp_path)
    with pytest.raises(AssertionError, match="not a model: it has no model.json"), endpoint:
        pass
    assert not endpoint.container.runs


def empty_archive(folder: Path) -> Path:
    import tarfile

    (folder / "model").mkdir()
    with tarfile.open(folder / "model.tar.gz", "w:gz"):
        return folder / "model.tar.gz"
