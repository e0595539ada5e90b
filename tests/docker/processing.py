"""Amazon SageMaker's processing jobs on this machine, by plain `docker run`; see platform.py."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from .container import Container, new_name, settings, volumes
from .opt_ml import INSTANCE_TYPE, ML, give, write_documents
from .platform import REASON_CHARACTERS, JobEnd, job_variables


def process(
    image: str,
    folder: Path,
    inputs: Mapping[str, Path],
    outputs: Sequence[str],
    *,
    entrypoint: Sequence[str],
    arguments: Sequence[str] = (),
) -> JobEnd:
    """CreateProcessingJob: run it to its end, with `inputs` and `outputs` by their names.

    ContainerEntrypoint replaces the image's entry point, ContainerArguments its command. Inputs are
    copied to /opt/ml/processing/NAME, a model.tar.gz still packed; outputs are uploaded at the end,
    here to `folder`/NAME. The configuration is in /opt/ml/config. The reason of a failure is the
    beginning of /opt/ml/output/message, which must be UTF-8.
    """
    name, first = new_name(), "algo-1"
    description = {"ProcessingJobName": name, "AppSpecification": {"ImageUri": image}}
    resources = {"current_host": first, "hosts": [first], "current_instance_type": INSTANCE_TYPE}
    documents = {"processingjobconfig.json": description, "resourceconfig.json": resources}
    write_documents(folder / "config", documents)
    mounts = {folder / "config": f"{ML}/config", folder / "output": f"{ML}/output"}
    for given, source in inputs.items():
        place = folder / "inputs" / given
        if source.is_dir():
            shutil.copytree(source, place)
        else:
            place.mkdir(parents=True)
            shutil.copy(source, place)
        mounts[place] = f"{ML}/processing/{given}"
    for taken in outputs:
        mounts[folder / taken] = f"{ML}/processing/{taken}"
    for path in mounts:
        path.mkdir(exist_ok=True)
    give(list(mounts), 0, image)
    variables = settings(job_variables("PROCESSING", name))
    command = ["--entrypoint", entrypoint[0], image, *entrypoint[1:], *arguments]
    words = ["--network", "none", *volumes(mounts), *variables, *command]
    with Container(name, words) as container:
        end, log = container.wait(), container.log()
    message = folder / "output" / "message"
    reason = message.read_text(encoding="utf-8") if message.is_file() else ""
    return JobEnd(
        "Failed" if end.code else "Completed", reason[:REASON_CHARACTERS], [end.code], log
    )
