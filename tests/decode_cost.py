"""What a request costs the process that decodes it, measured in a child process.

tracemalloc does not see the memory of Pillow, libtiff or libwebp; the kernel does.
"""

import json
import os
import subprocess
import sys
from typing import NamedTuple

CHILD = """
import json, sys, time
import PIL.JpegImagePlugin, PIL.MpoImagePlugin, PIL.PngImagePlugin, PIL.TiffImagePlugin
from alexmri.serving.decode import PixelBudget, read_records, to_pixels
from alexmri.serving.request_error import RequestError

def peak():
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

body, before, began = sys.stdin.buffer.read(), peak(), time.process_time()
try:
    with PixelBudget(time.monotonic() + float(sys.argv[2])) as budget:
        records = read_records(sys.argv[1], body, budget)
        _, errors = to_pixels(
            records, budget, image_size=32, channels=1, tolerated=range(400, 500)
        )
    refused = next(filter(None, errors), None)
except RequestError as error:
    refused = error
print(json.dumps({
    "status": refused.status if refused else 200,
    "message": refused.message if refused else "",
    "megabytes": peak() - before,
    "seconds": time.process_time() - began,
}))
"""


class Cost(NamedTuple):
    status: int
    message: str
    # Of memory beside the body, at the peak; of the processor.
    megabytes: float
    seconds: float


def cost_of(content_type: str, body: bytes, deadline_s: float = 60) -> Cost:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, content_type, str(deadline_s)],
        input=body,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=120,
    )
    return Cost(**json.loads(done.stdout))
