"""The command blocks of a Markdown page that are marked to be run, and how they are run."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARKED = re.compile(r"^<!-- run -->\n+```\w*\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
TIMEOUT_S = 900


def marked_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the commands of each block below a line `<!-- run -->`."""
    for found in MARKED.finditer(text):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def run_blocks(page: Path, folder: Path) -> None:
    """Run the marked blocks of a page in order, in one folder that is their home too.

    What a block leaves in the background runs until the last one has ended.

    Raises:
        AssertionError: a block failed; with page, line, commands and output.
    """
    # The `alexmri` of this environment, with the code of this checkout.
    root = Path(__file__).parents[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    surroundings = {"PATH": path, "PYTHONPATH": str(root / "code"), "HOME": str(folder)}
    environment = {**os.environ, **surroundings}
    log, started = folder / ".output", list[int]()
    try:
        for line, commands in marked_blocks(page.read_text(encoding="utf-8")):
            with log.open("w+", encoding="utf-8") as output:
                block = subprocess.Popen(
                    ["bash", "-e", "-c", commands],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                started.append(block.pid)
                code = block.wait(TIMEOUT_S)
                if code:
                    told = log.read_text(encoding="utf-8", errors="replace")
                    what = f"{page.name}, line {line}: exit code {code}"
                    raise AssertionError(f"{what}\n{commands}\n{told}")
    finally:
        for group in started:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
