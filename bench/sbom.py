"""Write what is in this image as CycloneDX JSON: Python packages and Debian packages.

    python3 sbom.py TOOLS FILE

Runs in the image (`make sbom`). TOOLS is a folder with cyclonedx-bom that is no part of it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path("/usr/share/doc")


def python_packages(tools: Path) -> dict[str, Any]:
    """Return the document of the tool about this environment, with alexmri as its subject."""
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(tools)!r});"
        " runpy.run_module('cyclonedx_py', run_name='__main__')"
    )
    options = (
        "environment",
        "--output-reproducible",
        "--no-validate",
        "--pyproject",
        "pyproject.toml",
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *options, "--output-file", "-", sys.executable],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def debian_packages() -> list[dict[str, Any]]:
    """Return a component for each package that dpkg knows."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    system = dict(line.split("=", 1) for line in lines if "=" in line)["ID"].strip('"')
    form = "--showformat=${binary:Package}\t${Version}\t${Architecture}\n"
    command = ["dpkg-query", "--show", form]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    components = []
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        name = name.partition(":")[0]
        address = f"pkg:deb/{system}/{name}@{version.replace('+', '%2B')}?arch={architecture}"
        components.append(
            {
                "type": "library",
                "bom-ref": address,
                "name": name,
                "version": version,
                "purl": address,
                "licenses": [{"license": {"name": each}} for each in licences(name)],
            }
        )
    return components


def licences(package: str) -> list[str]:
    """Return the licences that Debian's copyright file names, or where they are to be read."""
    path = DOCS / package / "copyright"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return sorted(set(re.findall(r"^License: *(\S.*)$", text, re.MULTILINE))) or [f"see {path}"]


def main() -> None:
    tools, file = Path(sys.argv[1]), Path(sys.argv[2])
    document = python_packages(tools)
    for component in document["components"]:
        undeclared = {"license": {"name": "not declared; see the LICENSE file of the package"}}
        component.setdefault("licenses", [undeclared])
    document["components"] += debian_packages()
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    sys.path.insert(0, str(tools))
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    version = SchemaVersion.from_version(document["specVersion"])
    error = JsonStrictValidator(version).validate_str(text)
    if error:
        sys.exit(f"what was written is not CycloneDX {document['specVersion']}: {error}")
    file.write_text(text, encoding="utf-8")
    print(f"{len(document['components'])} components")


if __name__ == "__main__":
    main()
