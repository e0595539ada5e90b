"""The parts of bench/gpu.py about a trained model: the server, and ONNX against PyTorch."""

import shutil
from pathlib import Path

from gpu_check import Check, Figures

CONNECTIONS, SECONDS = (1, 16, 64, 256), 5
TINY_CONNECTIONS, TINY_SECONDS = (1, 4), 1
COMPARED_IMAGES = 1000


def server(check: Check) -> Figures:
    """Measure container/serve: answers a second and their times, by number of connections."""
    # The server's own log would name a missing package in many lines.
    import flask  # noqa: F401
    import gunicorn  # noqa: F401
    import prometheus_client  # noqa: F401
    from server import OURS, running

    image = png_of_a_slice(check)
    connections = TINY_CONNECTIONS if check.tiny else CONNECTIONS
    seconds = TINY_SECONDS if check.tiny else SECONDS
    figures: Figures = {"client": "wrk" if shutil.which("wrk") else "bench/http_client.py"}
    with running(OURS, check.model, {}) as ours:
        ours.wait_for("POST", "/invocations", image.read_bytes())
        for number in connections:
            seen = ours.load(image, connections=number, seconds=seconds)
            figures[f"connections_{number}"] = {
                "answers_per_second": seen["throughput"],
                "p50_milliseconds": seen["p50_ms"],
                "p99_milliseconds": seen["p99_ms"],
                "errors": seen["errors"],
                "client_cores": seen["client_cores"],
                "server_cores": seen["server_cores"],
            }
        figures["server_memory_mib"] = ours.memory_mib()
    return figures


def png_of_a_slice(check: Check) -> Path:
    from PIL import Image

    slices = sorted(path for path in check.data.rglob("*") if path.suffix in (".jpg", ".png"))
    if not slices:
        raise FileNotFoundError(f"{check.data} holds no .jpg or .png image to send to the server")
    path = check.scratch / "slice.png"
    with Image.open(slices[0]) as image:
        image.save(path)
    return path


def onnx_parity(check: Check) -> Figures:
    """Export the model to ONNX; compare onnxruntime on the CPU with PyTorch on the device."""
    import numpy as np
    import onnxruntime

    from alexmri.model.onnx import export_onnx
    from alexmri.model.predictor import Predictor

    predictor, path = Predictor.load(check.model), check.scratch / "model.onnx"
    bundle = predictor.bundle
    export_onnx(
        path,
        bundle.network.cpu(),
        classes=bundle.classes,
        temperature=bundle.temperature,
        pixels_NCHW=bundle.golden_NCHW,
        preprocessing=bundle.preprocessing,
    )
    pixels_NCHW = np.ascontiguousarray(check.bench.dataset.cache.pixels_NCHW[:COMPARED_IMAGES])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (onnx_NK,) = session.run(["probabilities"], {"pixels": pixels_NCHW})
    # The network went to the CPU for the export.
    torch_NK = Predictor.load(check.model).predict(pixels_NCHW).probabilities_NK
    return {
        "images": len(pixels_NCHW),
        "max_probability_difference": float(np.abs(onnx_NK - torch_NK).max()),
        "same_class_share": float((onnx_NK.argmax(1) == torch_NK.argmax(1)).mean()),
        "precision": predictor.inference.compute.precision,
    }
