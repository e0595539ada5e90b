"""Compressed frames are decoded in a process of their own: a damaged one can end it.

GDCM and openjpeg are written in C++. Of damaged files, one in some hundred made them abort, which
would take a server with all its requests along.

That process runs this file by its path; it imports nothing of alexmri. A request on its standard
input is a line of JSON with `bytes` and `indices`, then the file. The answer is a line of JSON with
`dtype` and `shape` and the values for each frame, or a line with `error`.
"""

import ctypes
import io
import json
import math
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROGRAM = Path(__file__)
PR_SET_PDEATHSIG = 1


class DecoderProcess:
    """A process that decodes; it starts with the first file and may cost `seconds` of processor."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DecoderProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def frames(self, data: bytes, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the frames of a file with these numbers, in their order: (H, W) or (H, W, 3).

        Raises:
            ValueError: they cannot be decoded, or the process has ended.
        """
        if self._process is None:
            # Isolated, so that nothing in the working folder or beside the program is imported.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", str(PROGRAM), str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        write, read = self._process.stdin, self._process.stdout
        if write is None or read is None:
            raise ValueError("the decoder has no pipes")
        try:
            write.write(json.dumps({"bytes": len(data), "indices": list(indices)}).encode() + b"\n")
            write.write(data)
            write.flush()
        except OSError:
            raise ValueError("the decoder has ended") from None
        for _ in indices:
            line = read.readline()
            head: dict[str, Any] = json.loads(line) if line else {"error": "the decoder has ended"}
            if "error" in head:
                raise ValueError(head["error"])
            dtype = np.dtype(head["dtype"])
            shape: tuple[int, ...] = tuple(head["shape"])
            yield np.frombuffer(read.read(dtype.itemsize * math.prod(shape)), dtype).reshape(shape)


def _answer_requests() -> None:
    """Decode until standard input ends; the argument is how many seconds that may cost."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels

    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        data = sys.stdin.buffer.read(request["bytes"])
        out = sys.stdout.buffer
        try:
            dataset = dcmread(io.BytesIO(data), force=True)
            for values in iter_pixels(dataset, indices=request["indices"]):
                head = {"dtype": values.dtype.str, "shape": values.shape}
                out.write(json.dumps(head).encode() + b"\n" + values.tobytes())
        except Exception as error:
            out.write(json.dumps({"error": str(error)[:500]}).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    _answer_requests()
