"""Decode compressed DICOM frames, as a process of its own: see decoder_process.py.

Runs by its path and imports nothing of alexmri. A request on standard input is a line of JSON with
`bytes` and `indices`, then the file. The answer is a line of JSON with `dtype` and `shape` and the
values for each frame, or a line with `error`.
"""

import ctypes
import io
import json
import resource
import signal
import sys
import warnings

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer requests until standard input ends; the argument is how many seconds they may cost."""
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
    main()
