"""The SM_* variables that scripts written for SageMaker look for, in both spellings there are.

One is sagemaker-training-toolkit's (environment.py, mapping.py), the other the SageMaker SDK 3
driver's (container_drivers/scripts/environment.py). The platform itself sets none of them.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexmri.contract.hosts import Hosts
from alexmri.contract.paths import Paths

MASTER_PORT = 7777
NVIDIA_CARDS = Path("/proc/driver/nvidia/gpus")
ONE_GROUP = "homogeneousCluster"


def sm_environment(
    paths: Paths,
    hosts: Hosts,
    hyperparameters: Mapping[str, Any],
    delivery: Mapping[str, Any],
    existing: Mapping[str, str],
) -> dict[str, str]:
    """Return `existing` with every SM_* variable that is not in it yet.

    Args:
        hyperparameters: as in hyperparameters.json; what the platform's clients add is left out.
        delivery: the content of inputdataconfig.json.
    """
    values = {key: _decoded(v) for key, v in hyperparameters.items() if not _is_platforms(key)}
    variables: dict[str, Any] = {
        **_folders(paths),
        **_machines(hosts),
        **_channels(paths, delivery),
        "SM_HPS": values,
        "SM_USER_ARGS": [part for key, v in values.items() for part in (_option(key), _shown(v))],
        "SM_INPUT_DATA_CONFIG": delivery,
        "SM_FRAMEWORK_PARAMS": {
            key: _decoded(v) for key, v in hyperparameters.items() if _is_platforms(key)
        },
        "SM_LOG_LEVEL": existing.get("SAGEMAKER_CONTAINER_LOG_LEVEL", "20"),
        "SM_MODULE_NAME": "train",
        "SM_MODULE_DIR": str(Path(__file__).parents[3]),
        "SM_USER_ENTRY_POINT": "train",
        "SM_ENTRY_SCRIPT": "train",
        "SM_SOURCE_DIR": str(Path(__file__).parents[3]),
        "SM_FRAMEWORK_MODULE": "alexmri",
        "SM_DISTRIBUTED_CONFIG": {},
        "SM_DISTRIBUTED_DRIVER_DIR": "",
        "CURRENT_HOST": hosts.current,
        "SAGEMAKER_REGION": existing.get("AWS_REGION", ""),
        "SAGEMAKER_JOB_NAME": existing.get("TRAINING_JOB_NAME", ""),
    }
    for key, value in values.items():
        variables[f"SM_HP_{key.upper()}"] = value
        variables[f"SM_HP_{key.upper().replace('-', '_')}"] = value
    variables["SM_TRAINING_ENV"] = {
        name.removeprefix("SM_").lower(): value for name, value in variables.items()
    }
    shown = {name: _shown(value) for name, value in variables.items() if value != ""}
    return {name: value for name, value in shown.items() if _fits(name, value)} | dict(existing)


def _folders(paths: Paths) -> dict[str, str]:
    return {
        "SM_MODEL_DIR": str(paths.model),
        "SM_INPUT_DIR": str(paths.input),
        "SM_INPUT_DATA_DIR": str(paths.data),
        "SM_INPUT_CONFIG_DIR": str(paths.config),
        "SM_OUTPUT_DIR": str(paths.output),
        "SM_OUTPUT_DATA_DIR": str(paths.results),
        "SM_OUTPUT_FAILURE": str(paths.failure),
        "SM_OUTPUT_INTERMEDIATE_DIR": str(paths.output / "intermediate"),
    }


def _machines(hosts: Hosts) -> dict[str, Any]:
    said = hosts.document or {}
    instance_type = said.get("current_instance_type") or "local"
    own = str(said.get("current_group_name") or ONE_GROUP)
    alone = {
        "instance_group_name": own,
        "instance_type": instance_type,
        "hosts": list(hosts.names),
    }
    groups = said.get("instance_groups")
    described = [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []
    by_name = {str(group.get("instance_group_name")): group for group in described or [alone]}
    return {
        "SM_HOSTS": list(hosts.names),
        "SM_HOST_COUNT": len(hosts.names),
        "SM_CURRENT_HOST": hosts.current,
        "SM_CURRENT_HOST_RANK": hosts.rank,
        "SM_MASTER_ADDR": hosts.first,
        "SM_MASTER_PORT": MASTER_PORT,
        "SM_NETWORK_INTERFACE_NAME": hosts.interface,
        "SM_CURRENT_INSTANCE_TYPE": instance_type,
        "SM_CURRENT_INSTANCE_GROUP": own,
        "SM_CURRENT_INSTANCE_GROUP_HOSTS": by_name.get(own, {}).get("hosts", list(hosts.names)),
        "SM_INSTANCE_GROUPS": list(by_name),
        "SM_INSTANCE_GROUPS_DICT": by_name,
        "SM_DISTRIBUTION_INSTANCE_GROUPS": [],
        "SM_IS_HETERO": len(by_name) > 1,
        "SM_TOPOLOGY": said.get("topology") or "",
        "SM_RESOURCE_CONFIG": said,
        "SM_NUM_CPUS": os.cpu_count() or 1,
        "SM_NUM_GPUS": len(list(NVIDIA_CARDS.iterdir())) if NVIDIA_CARDS.is_dir() else 0,
        "SM_NUM_NEURONS": 0,
    }


def _channels(paths: Paths, delivery: Mapping[str, Any]) -> dict[str, Any]:
    folders = {path.name for path in paths.data.iterdir()} if paths.data.is_dir() else set()
    names = sorted(delivery or {name for name in folders if (paths.data / name).is_dir()})
    return {
        "SM_CHANNELS": names,
        **{f"SM_CHANNEL_{name.upper()}": str(paths.data / name) for name in names},
    }


def _fits(name: str, value: str) -> bool:
    """Whether the kernel takes the variable: no NUL, no `=` in the name, less than 128 KiB."""
    return "\0" not in name + value and "=" not in name and len(os.fsencode(value)) < 100_000


def _is_platforms(key: str) -> bool:
    return key.startswith(("sagemaker_", "_tuning"))


def _decoded(value: Any) -> Any:
    """Undo the JSON that clients put around values, as both originals do."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _option(key: str) -> str:
    return f"-{key}" if len(key) == 1 else f"--{key}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
