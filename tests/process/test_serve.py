"""container/serve and `alexmri serve` as processes: answers, start, end, several processes."""

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from .conftest import PATIENCE, Tree
from .serving import Server, free_port, running, serving


def test_every_kind_of_request_gets_the_same_answer(
    server: Server, slice_file: Path, tmp_path: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with Image.open(slice_file) as picture:
        picture.save(tmp_path / "slice.png")
    text = base64.b64encode(jpeg).decode()
    requests = (
        (jpeg, "image/jpeg"),
        ((tmp_path / "slice.png").read_bytes(), "image/png"),
        (json.dumps({"image": text}).encode(), "application/json"),
        (json.dumps({"instances": [{"b64": text}]}).encode(), "application/json; charset=utf-8"),
    )
    answers = [server.ask("/invocations", body, kind) for body, kind in requests]
    assert [status for status, _ in answers] == [200] * 4
    assert len({json.dumps(json.loads(content)["predictions"]) for _, content in answers}) == 1
    (prediction,) = json.loads(answers[0][1])["predictions"]
    assert set(prediction["probabilities"]) == {"MildDemented", "NonDemented"}


def test_the_answer_is_that_of_the_command_line(
    server: Server, trained: Tree, slice_file: Path
) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-c", "from alexmri.cli import main; main()"),
            *("predict", str(trained.root / "model"), str(slice_file), "--json"),
        ],
        env=trained.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    by_command = json.loads(result.stdout)
    _, content = server.ask("/invocations", slice_file.read_bytes(), "image/jpeg")
    by_server = json.loads(content)
    assert by_server["model_version"] == by_server["model"] == by_command["model"]
    expected = by_command["predictions"][0]["probabilities"]
    # The command computes in float32, the server in the fastest arithmetic that agrees.
    assert by_server["predictions"][0]["probabilities"] == pytest.approx(expected, abs=0.02)


def test_what_is_no_picture_is_told_without_a_path(server: Server, slice_file: Path) -> None:
    for body in (b"junk", slice_file.read_bytes()[:700]):
        status, content = server.ask("/invocations", body, "image/jpeg")
        assert status == 422
        message = json.loads(content)["error"]["message"]
        assert message.startswith("the image cannot be read as an image: ")
        assert "/" not in message


def test_a_request_under_way_is_answered_before_the_server_ends(
    trained: Tree, slice_file: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with serving(trained, ALEXMRI_WORKERS="1") as server:
        server.wait_until_ready()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.putrequest("POST", "/invocations?explain=gradcam")
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Content-Length", str(len(jpeg)))
        connection.endheaders(jpeg[:1000])
        # A thread of the server waits for the rest once the log tells of a later request.
        assert server.ask("/invocations", jpeg, "image/jpeg")[0] == 200
        assert server.process.stdout
        while "request" not in server.process.stdout.readline():
            pass
        server.process.send_signal(signal.SIGTERM)
        while (status := server.ask("/ping")[0]) == 200:
            time.sleep(0.01)
        assert status == 503
        refused, content = server.ask("/invocations", jpeg, "image/jpeg")
        assert (refused, json.loads(content)["error"]["code"]) == (503, "draining")
        connection.send(jpeg[1000:])
        answer = connection.getresponse()
        assert answer.status == 200
        (prediction,) = json.loads(answer.read())["predictions"]
        assert prediction["gradcam_png"]
        connection.close()
        printed, _ = server.process.communicate(timeout=25)
        assert server.process.returncode == 0, printed


def test_a_server_stopped_while_it_starts_ends_well(trained: Tree) -> None:
    with serving(trained) as server:
        assert server.process.stdout
        while "Booting worker" not in server.process.stdout.readline():
            pass
        server.process.send_signal(signal.SIGTERM)
        printed, _ = server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode == 0, printed
        assert "Traceback" not in printed


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(
    trained: Tree, tmp_path: Path
) -> None:
    tree = Tree(tmp_path / "ml")
    shutil.copytree(trained.root / "model", tree.root / "model")
    with (tree.root / "model" / "model.safetensors").open("r+b") as weights:
        weights.seek(100_000)
        weights.write(b"damage")
    with serving(tree) as server:
        printed, _ = server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode not in (0, None)
        assert printed.count("model.safetensors is damaged") == printed.count("error: ") == 1
        assert "Traceback" not in printed


def test_a_model_that_stops_answering_ends_the_server_with_the_reason(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    """As after an error of CUDA, which every later call repeats."""
    (tmp_path / "broken.py").write_text(
        """
from alexmri.model.predictor import Predictor
from alexmri.serving.app import serve

works, broken = Predictor.predict, []

def predict(self, pixels_NCHW):
    broken.extend([True] * bool(pixels_NCHW.any()))
    if broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return works(self, pixels_NCHW)

Predictor.predict = predict
""",
        encoding="utf-8",
    )
    port = free_port()
    tree = Tree(trained.root, {"SAGEMAKER_BIND_TO_PORT": str(port), "ALEXMRI_WORKERS": "2"})
    configuration = ["--config", "python:alexmri.serving.gunicorn_config", "--chdir", str(tmp_path)]
    process = tree.spawn(sys.executable, "-m", "gunicorn", *configuration, "broken:serve()")
    with running(process, port) as server:
        server.wait_until_ready()
        try:
            status, content = server.ask("/invocations", slice_file.read_bytes(), "image/jpeg")
            assert (status, json.loads(content)["error"]["code"]) == (500, "internal_error")
        except (OSError, http.client.HTTPException):
            pass  # it was gone before it could answer
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode not in (0, None)
        assert printed.count("error: internal error: RuntimeError: CUDA error: an illegal") == 1


def test_processes_share_their_requests_and_their_metrics(trained: Tree, slice_file: Path) -> None:
    jpeg = slice_file.read_bytes()
    with serving(trained, ALEXMRI_WORKERS="2") as server:
        server.wait_until_ready()
        with ThreadPoolExecutor(16) as clients:
            asked = [
                clients.submit(server.ask, "/invocations", jpeg, "image/jpeg") for _ in range(64)
            ]
            assert {future.result()[0] for future in asked} == {200}
        wanted = 'alexmri_requests_total{status="200"} 64.0'
        deadline = time.monotonic() + PATIENCE
        # The process that is asked has counted its own; the other one does so within a moment.
        while wanted not in server.ask("/metrics")[1].decode():
            assert time.monotonic() < deadline, server.ask("/metrics")[1].decode()
        server.process.send_signal(signal.SIGTERM)
        printed, _ = server.process.communicate(timeout=30)
        assert server.process.returncode == 0
        assert printed.count("event=request status=200") == 64
        assert printed.count(" is ready: ") == 2


def test_a_variable_that_is_wrong_ends_the_server_in_one_sentence(trained: Tree) -> None:
    tree = Tree(trained.root, {"SAGEMAKER_TS_BATCH_SIZE": "many"})
    done = tree.run("serve")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: SAGEMAKER_TS_BATCH_SIZE is 'many'; it must be a number from 0 to 1024"
    ]


def test_people_serve_a_model_directory_of_their_own(trained: Tree) -> None:
    port = free_port()
    command = [sys.executable, "-c", "from alexmri.cli import main; main()", "serve"]
    elsewhere = Tree(trained.root / "elsewhere")
    process = elsewhere.spawn(*command, trained.root / "model", "--port", str(port))
    with running(process, port) as server:
        server.wait_until_ready()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0, printed
    assert f"http://127.0.0.1:{port}" in printed


def test_a_process_that_is_killed_is_replaced_and_the_others_go_on(
    trained: Tree, slice_file: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with serving(trained, ALEXMRI_WORKERS="2") as server:
        server.wait_until_ready()
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        first, second = children.read_text().split()
        os.kill(int(first), signal.SIGKILL)

        def wait_for_the_successor() -> None:
            assert server.process.stdout
            for _ in range(3):
                while " is ready: " not in (line := server.process.stdout.readline()):
                    assert line, "the server has ended"

        with ThreadPoolExecutor(1) as reader:
            ready = reader.submit(wait_for_the_successor)
            # Meanwhile the successor would refuse, and leaves all to the other process.
            while not ready.done():
                try:
                    assert server.ask("/invocations", jpeg, "image/jpeg")[0] == 200
                except OSError:
                    continue  # a connection the killed process had
            ready.result()
        after = children.read_text().split()
        assert len(after) == 2
        assert second in after
        assert first not in after
