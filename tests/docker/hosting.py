"""Amazon SageMaker's endpoints on this machine, by plain `docker run`; see platform.py."""

import http.client
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from .container import Container, network, new_name, settings
from .opt_ml import ML

# Seconds: for the first good ping after the start, for each ping, and for an answer.
STARTUP, PING, INVOCATION = 480, 2, 60
# Seconds from SIGTERM to SIGKILL.
SECONDS_TO_STOP = 30


class Endpoint:
    """CreateEndpoint: one host that serves a model, healthy when the `with` block begins.

    It runs `docker run IMAGE serve` with the unpacked model.tar.gz, and nothing else, as a
    read-only /opt/ml/model, and asks on port 8080, or on $SAGEMAKER_BIND_TO_PORT. Nothing outside
    can be reached from it. `GET /ping` must give 200 for the first time within 8 minutes, and each
    time within 2 s.
    """

    def __init__(
        self,
        image: str,
        model: Path,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._unpacked = folder / "model"
        with tarfile.open(model) as tar:
            tar.extractall(self._unpacked, filter="data")
        self._port = int((environment or {}).get("SAGEMAKER_BIND_TO_PORT", "8080"))
        mount = ["--volume", f"{self._unpacked}:{ML}/model:ro"]
        self._words = [*mount, *settings(environment or {}), *options, image, "serve"]

    def __enter__(self) -> "Endpoint":
        with ExitStack() as started:
            name = started.enter_context(network(new_name()))
            self.container = started.enter_context(
                Container(name, ["--network", name, *self._words])
            )
            networks = self.container.inspect()["NetworkSettings"]["Networks"]
            self._address = networks[name]["IPAddress"]
            deadline = time.monotonic() + STARTUP
            while not self.is_healthy():
                assert self.container.runs, self.container.log()
                assert time.monotonic() < deadline, self.container.log()
                time.sleep(0.2)
            self._started = started.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._started.close()

    def is_healthy(self) -> bool:
        """Ping once; who does not answer in 2 s is not healthy."""
        try:
            return self._ask("GET", "/ping", None, {}, PING)[0] == 200
        except OSError:
            return False

    def invoke(self, body: bytes, content_type: str, **headers: str) -> tuple[int, bytes]:
        """InvokeEndpoint: return status and body of the answer, which must come within 60 s."""
        sent = {"Content-Type": content_type, **headers}
        return self._ask("POST", "/invocations", body, sent, INVOCATION)

    def stop(self) -> tuple[int, float]:
        """Scale in: SIGTERM, 30 s, SIGKILL. Return the exit code and how many seconds it took."""
        began = time.time()
        self.container.stop(SECONDS_TO_STOP)
        end = self.container.wait()
        return end.code, end.time - began

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], seconds: int
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=seconds)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
