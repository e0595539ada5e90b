"""What the environment asks of the server, in the dialects of several toolkits."""

import pytest

from alexmri.errors import UserError
from alexmri.serving.config import Config, cores_of, worker_count


@pytest.mark.parametrize(
    ("environment", "field", "value"),
    [
        ({"SAGEMAKER_BIND_TO_PORT": "9000"}, "port", 9000),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "3"}, "workers", 3),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "None"}, "workers", None),
        ({"MODEL_SERVER_WORKERS": "2", "ALEXMRI_WORKERS": "1"}, "workers", 1),
        ({"SAGEMAKER_TS_MAX_WORKERS": "2", "SAGEMAKER_TS_MIN_WORKERS": "1"}, "workers", 2),
        ({"SAGEMAKER_GUNICORN_WORKERS": "2"}, "workers", 2),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "30"}, "timeout_s", 25),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "4"}, "timeout_s", 3),
        ({"SAGEMAKER_TS_RESPONSE_TIMEOUT": "100"}, "timeout_s", 95),
        ({"MODEL_SERVER_TIMEOUT": "10"}, "timeout_s", 7.5),
        ({"SAGEMAKER_TS_BATCH_SIZE": "8"}, "max_batch_size", 8),
        ({"SAGEMAKER_TS_MAX_BATCH_DELAY": "100"}, "batch_delay_s", 0.1),
        ({"ALEXMRI_MAX_BATCH_DELAY_MS": "2"}, "batch_delay_s", 0.002),
        ({"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"}, "default_accept", "text/csv"),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"}, "max_payload_bytes", 6 * 2**20),
        ({"SAGEMAKER_CONTAINER_LOG_LEVEL": "40"}, "log_level", 40),
        ({"SAGEMAKER_BATCH": "True"}, "batch_transform", True),
    ],
)
def test_the_dialects_of_other_toolkits_are_understood(
    environment: dict[str, str], field: str, value: object
) -> None:
    assert getattr(Config.of(environment), field) == value


def test_variables_without_a_meaning_here_are_tolerated() -> None:
    named = (
        "SAGEMAKER_SAFE_PORT_RANGE SAGEMAKER_MULTI_MODEL SAGEMAKER_BATCH_STRATEGY"
        " SAGEMAKER_MAX_CONCURRENT_TRANSFORMS SAGEMAKER_MODEL_SERVER_VMARGS SAGEMAKER_PROGRAM"
        " SAGEMAKER_STARTUP_TIMEOUT SAGEMAKER_SUBMIT_DIRECTORY SAGEMAKER_REGION CA_REPOSITORY_ARN"
        " SAGEMAKER_GUNICORN_THREADS SAGEMAKER_GUNICORN_WORKER_CLASS"
    )
    assert Config.of(dict.fromkeys(named.split(), "whatever")) == Config.of({}) == Config()


@pytest.mark.parametrize(
    "environment",
    [
        {"SAGEMAKER_BIND_TO_PORT": "http"},
        {"SAGEMAKER_BIND_TO_PORT": "70000"},
        {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "nan"},
        {"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0.5"},
        {"ALEXMRI_LOG_FORMAT": "xml"},
    ],
)
def test_a_variable_that_is_wrong_is_named(environment: dict[str, str]) -> None:
    (name,) = environment
    with pytest.raises(UserError, match=name):
        Config.of(environment)


@pytest.mark.parametrize(
    ("asked", "cores", "gigabytes", "processes"),
    [(7, 1, 1, 7), (None, 3, 16, 3), (None, 64, 16, 4), (None, 64, 2, 2), (None, 2, 0.5, 1)],
)
def test_processes_are_those_asked_for_or_one_per_core_up_to_four_that_fit(
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    cores: int,
    gigabytes: float,
    processes: int,
) -> None:
    monkeypatch.setattr("alexmri.serving.config.cpu_cores", lambda: cores)
    monkeypatch.setattr(
        "alexmri.serving.config.usable_memory_bytes", lambda: int(gigabytes * 2**30)
    )
    assert worker_count(Config(workers=asked), {"CUDA_VISIBLE_DEVICES": ""}) == processes


@pytest.mark.parametrize(
    ("visible", "usable", "place", "processes", "cores"),
    [
        ({0, 1}, 2, 0, 2, {0}),
        ({0, 1}, 2, 1, 2, {1}),
        ({4, 5, 6, 7, 8}, 5, 1, 2, {6, 7}),
        ({0, 1}, 2, 0, 1, {0, 1}),
        # One process more than at the start (TTIN).
        ({0, 1}, 2, 2, 2, {0}),
        # Fewer cores than processes; a limit on the time of cores that others use too.
        ({0, 1}, 2, 2, 4, {0, 1}),
        ({0, 1, 2, 3}, 2, 0, 2, {0, 1, 2, 3}),
    ],
)
def test_each_process_has_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    visible: set[int],
    usable: int,
    place: int,
    processes: int,
    cores: set[int],
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: visible)
    monkeypatch.setattr("alexmri.serving.config.cpu_cores", lambda: usable)
    assert cores_of(place, processes) == cores
