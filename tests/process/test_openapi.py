"""The running server and its description, compared by schemathesis with requests of its own."""

import subprocess
import sys
from pathlib import Path

from .conftest import PATIENCE
from .serving import Server

# Whether invalid data is refused is not asked: more is taken than is described, such as any name
# of a field in a form.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance,unsupported_method"
)


def test_every_answer_is_the_one_that_the_description_has(server: Server) -> None:
    address = f"http://127.0.0.1:{server.port}"
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{address}/openapi.json"]
    options = ["--url", address, "--checks", CHECKS, "--max-examples", "40", "--no-color"]
    done = subprocess.run(
        [*command, *options, "--continue-on-failure", "--generation-database", "none"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-500:]
    assert "6 passed" in done.stdout
