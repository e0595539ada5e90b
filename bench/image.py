"""Print what the layers of images weigh, and the parts of the wheels' layer, as a Markdown table.

    python bench/image.py [IMAGE ...]

Megabytes of 10^6 bytes, as `docker images` counts them.
"""

import argparse
import json
import subprocess
from collections import Counter

LAYERS = {
    "COPY /opt/venv": "wheels",
    "apt-get install": "Python",
    "COPY ": "program",
    "pip install": "program",
}
# Runs in the image: the file sizes below site-packages by kind.
PARTS = """
import collections, json, pathlib
sizes = collections.Counter()
for path in pathlib.Path("/opt/venv").rglob("*"):
    if path.is_symlink() or not path.is_file():
        continue
    top = path.parts[6] if len(path.parts) > 6 else ""
    kind = "other packages, and pip"
    if path.suffix == ".pyc":
        kind = "bytecode for a fast start of `serve`"
    elif top.startswith(("nvidia", "cuda")):
        kind = "NVIDIA's CUDA libraries"
    elif top.startswith(("torch", "functorch")):
        kind = "PyTorch"
    sizes[kind] += path.stat().st_size
print(json.dumps(sizes))
"""


def docker(*arguments: str) -> str:
    """Run `docker …`; return what it printed."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


def layers(image: str) -> Counter[str]:
    """Return the bytes of an image by kind of layer."""
    lines = docker("history", "--no-trunc", "--human=false", "--format", "{{json .}}", image)
    sizes: Counter[str] = Counter()
    for line in lines.splitlines():
        layer = json.loads(line)
        made_by = layer["CreatedBy"]
        kind = next((name for word, name in LAYERS.items() if word in made_by), "base image")
        sizes[kind] += int(layer["Size"])
    return sizes


def table(images: list[str]) -> str:
    """Return the table: a row for each layer, and below the wheels one for each part of them."""
    columns = [(layers(image), json.loads(run_parts(image))) for image in images]
    rows = [("layer", *images), ("---", *["---:"] * len(images))]
    for kind in ("base image", "Python", "wheels", "program"):
        rows.append((kind, *(megabytes(found[kind]) for found, _ in columns)))
        if kind == "wheels":
            names = sorted({name for _, parts in columns for name in parts})
            rows += [
                (f"– {name}", *(megabytes(parts.get(name, 0)) for _, parts in columns))
                for name in names
            ]
    rows.append(("all", *(megabytes(sum(found.values())) for found, _ in columns)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run_parts(image: str) -> str:
    return docker("run", "--rm", "--network", "none", image, "python3", "-c", PARTS)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e7 else f"{size / 1e6:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", default=["alexmri"], metavar="IMAGE")
    print(table(parser.parse_args().images))


if __name__ == "__main__":
    main()
