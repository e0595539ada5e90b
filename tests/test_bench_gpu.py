"""`bench/gpu.py` measures in parts; a part that fails is named and ends no other."""

import http.server
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
PROGRAM = REPOSITORY / "bench" / "gpu.py"
PARTS = [
    *("device", "training", "seeds_recipe", "precisions", "determinism", "out_of_memory"),
    *("step_against_limit", "peers", "profile", "at_224_pixels", "million"),
    *("server", "onnx_parity", "audit"),
]
PATIENCE = 900


def run(file: Path, *options: str | Path) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--tiny", "--json", file, *options],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "code")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert file.is_file(), done.stderr
    return done.returncode, json.loads(file.read_text(encoding="utf-8")), done.stdout


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The program as a module, which finds its neighbours as if it were run."""
    sys.path.insert(0, str(PROGRAM.parent))
    spec = importlib.util.spec_from_file_location("bench_gpu", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_part_has_its_figures(tmp_path: Path) -> None:
    code, figures, printed = run(tmp_path / "figures.json")
    assert list(figures) == PARTS
    assert not [name for name in PARTS if "failed" in figures[name]]
    assert code == 0
    assert f"all {len(PARTS)} parts ran" in printed
    assert all(each["part_seconds"] > 0 for each in figures.values())
    device, training, speed = (figures[name] for name in ("device", "training", PARTS[6]))
    determinism, profile, peers = (figures[name] for name in ("determinism", "profile", "peers"))
    assert device["preflight"]["exit_code"] == 0
    assert any(line.startswith("device: ") for line in device["preflight"]["lines"])
    assert training["seconds"] > training["training_seconds"] > 0
    assert 0 <= training["accuracy"] <= 1
    assert 0 <= training["macro_f1"] <= 1
    rounds = speed["rounds"]
    assert {name: len(each) for name, each in rounds.items()} == {
        "limit_images_per_second": 1,
        "engine_images_per_second": 1,
    }
    pairs = zip(*rounds.values(), strict=True)
    (ratio,) = (engine / limit for limit, engine in pairs)
    assert speed["engine_over_limit_ratio"] == pytest.approx(ratio)
    assert speed["limit_images_per_second"] in rounds["limit_images_per_second"]
    assert figures["seeds_recipe"]["seconds"] > figures["seeds_recipe"]["training_seconds"] > 0
    assert figures["precisions"]["fp32"]["images_per_second"] > 0
    assert determinism["identical"] is True
    assert determinism["resumed_identical"] is True
    assert [len(each) for each in determinism["sha256"]] == [64, 64]
    assert profile["milliseconds_per_step"] > 0
    kind = "operator" if device["device"] == "cpu" else "kernel"
    shares = list(profile[f"{kind}_time_shares"].values())
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(profile["heaviest_time_share"])
    assert sum(shares) <= 1
    assert peers["textbook_fp32"]["engine_over_peer_ratio"] > 0
    has_timm = importlib.util.find_spec("timm") or (PROGRAM.parent / ".peers" / "timm").is_dir()
    assert set(peers["could_not_run"]) == (set() if has_timm else {"timm_bf16"})
    assert figures["at_224_pixels"]["engine_images_per_second"] > 0
    assert figures["million"]["images_per_second"] > 0
    for connections in (1, 4):
        served = figures["server"][f"connections_{connections}"]
        assert served["errors"] == 0
        assert served["answers_per_second"] > 0
        assert 0 < served["p50_milliseconds"] <= served["p99_milliseconds"]
    assert figures["onnx_parity"]["images"] == 96
    assert figures["onnx_parity"]["max_probability_difference"] < 0.02
    assert figures["audit"]["images_per_second"] > 0
    if device["device"] == "cpu":
        assert figures["out_of_memory"]["skipped"] == "there is no GPU"
        assert "needs a GPU" in figures["precisions"]["fp16"]["skipped"]


def test_a_part_that_fails_is_named_and_ends_no_other(
    gpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One part of each kind: in a process of its own, in this one, and one that needs no data."""
    empty, file = tmp_path / "empty", tmp_path / "figures.json"
    empty.mkdir()
    monkeypatch.setattr(gpu, "PARTS", (gpu.training, gpu.step_against_limit, gpu.out_of_memory))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "code"))
    monkeypatch.setenv("ALEXMRI_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--tiny", "--data", str(empty), "--json", str(file)]
    )
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert list(figures) == ["training", "step_against_limit", "out_of_memory"]
    for name in ("training", "step_against_limit"):
        assert set(figures[name]) == {"failed", "part_seconds"}
        assert str(empty) in figures[name]["failed"]
        assert "\n" not in figures[name]["failed"]
    assert capsys.readouterr().out.endswith("failed: training, step_against_limit\n")


def test_what_was_measured_is_written_before_the_next_part(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"

    def first(check: object) -> dict[str, Any]:
        import nowhere  # type: ignore[import-not-found]  # noqa: F401

        return {}

    def second(check: object) -> dict[str, Any]:
        (earlier,) = json.loads(file.read_text()).values()
        assert earlier["failed"] == "the package nowhere is missing"
        return {"seconds": 1.0}

    monkeypatch.setattr(gpu, "PARTS", (first, second))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json", str(file)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    assert json.loads(file.read_text())["second"]["seconds"] == 1.0


@pytest.mark.parametrize("connections", [1, 4])
def test_the_client_in_python_counts_answers_and_errors(connections: int) -> None:
    """It stands in for wrk: every second answer here is an error."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answered = itertools.count()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(503 if next(self.answered) % 2 else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = PROGRAM.with_name("http_client.py")
        options = (str(server.server_port), str(PROGRAM), str(connections), "0.5")
        done = subprocess.run([sys.executable, client, *options], capture_output=True, check=True)
        server.shutdown()
    seen = json.loads(done.stdout)
    assert seen["answered"] > connections
    assert abs(seen["status"] - seen["answered"] / 2) <= connections
    assert seen["connect"] == seen["read"] == seen["timeout"] == 0
    assert 0 < seen["p50_ms"] <= seen["p99_ms"]


def test_the_device_is_busy_while_any_of_its_work_runs(gpu: ModuleType) -> None:
    from gpu_profile import device_figures  # beside the program

    events = [
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 9_000.0},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 0.0, "dur": 9_000.0},
        {"cat": "kernel", "name": "gemm", "ts": 1_000.0, "dur": 3_000.0},
        {"cat": "kernel", "name": "relu", "ts": 2_000.0, "dur": 1_000.0},  # beside the first
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 5_000.0, "dur": 1_000.0},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 900.0, "dur": 50.0},
        {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "ts": 950.0, "dur": 50.0},
        {"ph": "M", "name": "process_name"},
    ]
    assert device_figures(events, steps=2, milliseconds_per_step=4.0) == {
        "kernels_per_step": 1.0,
        "launches_per_step": 0.5,
        "device_milliseconds_per_step": 2.0,
        "device_busy_share": 0.5,
        "heaviest_time_share": 1.0,
        "kernel_time_shares": {"gemm": 0.75, "relu": 0.25},
    }
