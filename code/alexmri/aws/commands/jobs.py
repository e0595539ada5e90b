"""`alexmri aws train, tune` and what goes with them: status, logs, stop, download."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from alexmri.aws.cli import Account, dry_run_option, show_dry_run
from alexmri.errors import UserError
from alexmri.options import command, read_settings, settings_options


@command("metric-definitions")
@click.option("--tuning", is_flag=True, help="also the objective of a tuning job")
def metric_definitions(tuning: bool) -> None:
    """Print how SageMaker finds the metrics in a log.

    This is MetricDefinitions in the AlgorithmSpecification of training and tuning jobs; with
    --tuning the HyperParameterTuningJobObjective stands beside it.
    """
    from alexmri.aws.requests.training import METRIC_DEFINITIONS, OBJECTIVE

    definitions = list(METRIC_DEFINITIONS)
    document = {"HyperParameterTuningJobObjective": OBJECTIVE, "MetricDefinitions": definitions}
    click.echo(json.dumps(document if tuning else definitions, indent=2))


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `command` the options that name the data and the image of a training."""
    for option in (
        click.option("--image", help="tag, or REPOSITORY@sha256:… (default: this git revision)"),
        click.option("--test", metavar="S3", help="address of test data, where kept apart"),
        click.option(
            "--validation", metavar="S3", help="address of validation data, where kept apart"
        ),
        click.option("--data", required=True, metavar="S3", help="address that `upload` printed"),
    ):
        command = option(command)
    return command


def _channels(data: str, validation: str | None, test: str | None) -> dict[str, str]:
    given = {"train": data, "validation": validation, "test": test}
    for option, place in given.items():
        if place and not place.startswith("s3://"):
            raise UserError(
                f"--{option.replace('train', 'data')} {place} is not an S3 address; `alexmri aws"
                f" upload {place}` prints one"
            )
    channels = {channel: place for channel, place in given.items() if place}
    return {"training": data} if list(channels) == ["train"] else channels


@command()
@data_options
@click.option("--name", help="name of the job (default: a digest of the request)")
@click.option("--detach", is_flag=True, help="start it and do not wait")
@dry_run_option
@settings_options
@click.pass_obj
def train(
    account: Account,
    /,
    data: str,
    validation: str | None,
    test: str | None,
    image: str | None,
    name: str | None,
    detach: bool,
    dry_run: bool,
    config_file: Path | None,
    **options: Any,
) -> None:
    """Train on SageMaker and watch until it ends.

    Ctrl-C leaves the job running. The same command attaches to the job while it runs, and goes on
    from its checkpoints after a failure or a stop. Options are those of `alexmri train`.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.jobs import start
    from alexmri.aws.requests.training import hyperparameters, training_request
    from alexmri.terminal import choose_terminal

    settings = hyperparameters(read_settings(config_file, options))
    channels = _channels(data, validation, test)
    found, revision = account.image(image, dry_run=dry_run)
    request = training_request(
        account.config, image=found, revision=revision, data=channels, settings=settings, name=name
    )
    if dry_run:
        described = {"TrainingJobName": request["TrainingJobName"]}
        show_dry_run(
            Call("sagemaker", "describe_training_job", described),
            Call("sagemaker", "create_training_job", request),
        )
        return
    terminal = choose_terminal()
    job = start(account.aws, request, terminal)
    if detach:
        terminal.say(f"to attach: alexmri aws logs {job} --follow")
        return
    watch(account, job)


@command()
@click.option(
    "--range",
    "ranges",
    multiple=True,
    required=True,
    metavar="NAME=LOW:HIGH[:SCALE]",
    help="what a setting may be; SCALE is linear, log or reverselog; or NAME=A,B,C",
)
@click.option(
    "--max-jobs",
    type=click.IntRange(1, 750),
    default=20,
    show_default=True,
    help="trainings in all",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 100),
    default=2,
    show_default=True,
    help="trainings at the same time",
)
@data_options
@click.option("--name", help="name of the tuning job (default: a digest of the request)")
@click.option("--detach", is_flag=True, help="start it and do not wait")
@dry_run_option
@settings_options
@click.pass_obj
def tune(
    account: Account,
    /,
    ranges: tuple[str, ...],
    max_jobs: int,
    parallel: int,
    data: str,
    validation: str | None,
    test: str | None,
    image: str | None,
    name: str | None,
    detach: bool,
    dry_run: bool,
    config_file: Path | None,
    **options: Any,
) -> None:
    """Search for the settings with the best val_macro_f1.

    It takes at most --max-jobs trainings. Each of them costs what `train` costs. The same command
    attaches to the search while it runs, and builds on its trials after a failure or a stop.
    `register` takes the best one.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.requests.training import hyperparameters
    from alexmri.aws.requests.tuning import (
        LONGEST_NAME,
        parameter_ranges,
        read_range,
        tuning_request,
    )
    from alexmri.aws.tuning import start
    from alexmri.terminal import choose_terminal

    asked = [read_range(text) for text in ranges]
    for each in asked:
        if options.get(each.name) is not None:
            raise UserError(
                f"'{each.name}' has a --range and a value; leave out --range or"
                f" --{each.name.replace('_', '-')}"
            )
    if parallel > max_jobs:
        raise UserError(f"--parallel {parallel} is more than --max-jobs {max_jobs}; lower it")
    if name and len(name) > LONGEST_NAME:
        raise UserError(f"--name {name} is longer than {LONGEST_NAME} characters; shorten it")
    found = parameter_ranges(asked, lambda more: read_settings(config_file, {**options, **more}))
    first = {each.name: each.values[0] for each in asked}
    settings = hyperparameters(read_settings(config_file, {**options, **first}))
    fixed = {key: value for key, value in settings.items() if key not in first}
    channels = _channels(data, validation, test)
    chosen, revision = account.image(image, dry_run=dry_run)
    request = tuning_request(
        account.config,
        image=chosen,
        revision=revision,
        data=channels,
        settings=fixed,
        ranges=found,
        max_jobs=max_jobs,
        parallel=parallel,
        name=name,
    )
    if dry_run:
        described = {"HyperParameterTuningJobName": request["HyperParameterTuningJobName"]}
        show_dry_run(
            Call("sagemaker", "describe_hyper_parameter_tuning_job", described),
            Call("sagemaker", "create_hyper_parameter_tuning_job", request),
        )
        return
    terminal = choose_terminal()
    job = start(account.aws, request, terminal)
    if detach:
        terminal.say(f"to see its trials: alexmri aws status {job}")
        return
    _watch_tuning(account, job)


def _watch_tuning(account: Account, job: str) -> None:
    from alexmri.aws.tuning import follow_tuning, tuning_lines
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    try:
        described = follow_tuning(account.aws, job, terminal)
    except KeyboardInterrupt:
        terminal.say(f"stopped waiting; {job} goes on. Run the same command to wait again")
        terminal.say(f"To stop it: alexmri aws stop {job}")
        sys.exit(130)
    for line in tuning_lines(account.aws, described):
        terminal.say(line)
    if described["HyperParameterTuningJobStatus"] == "Failed":
        raise UserError(f"{job} failed: {described.get('FailureReason', 'no reason')}")
    terminal.say(f"to register the best: alexmri aws register {job}")


def watch(account: Account, job: str) -> None:
    """Follow `job` to its end, or to a Ctrl-C, which the job does not notice."""
    from alexmri.aws.jobs import follow, require_completed, status_lines
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    try:
        described = follow(account.aws, job, terminal)
    except KeyboardInterrupt:
        terminal.say(
            f"stopped waiting; {job} goes on. To wait again: alexmri aws logs {job} --follow"
        )
        terminal.say(f"To stop it: alexmri aws stop {job}")
        sys.exit(130)
    require_completed(described)
    for line in status_lines(described):
        terminal.say(line)
    terminal.say(f"to fetch model and report: alexmri aws download {job}")


@command()
@click.argument("job")
@dry_run_option
@click.pass_obj
def status(account: Account, job: str, dry_run: bool) -> None:
    """Show state, cost and metrics of JOB.

    Of a tuning job the trials are listed.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.jobs import status_lines
    from alexmri.aws.tuning import describe_either, is_tuning, tuning_lines

    if dry_run:
        show_dry_run(Call("sagemaker", "describe_training_job", {"TrainingJobName": job}))
        return
    found = describe_either(account.aws, job)
    for line in tuning_lines(account.aws, found) if is_tuning(found) else status_lines(found):
        click.echo(line)


@command()
@click.argument("job")
@click.option("--follow", "following", is_flag=True, help="go on until the job ends")
@dry_run_option
@click.pass_obj
def logs(account: Account, job: str, following: bool, dry_run: bool) -> None:
    """Print the log of JOB."""
    from alexmri.aws.client import Call
    from alexmri.aws.jobs import TRAINING_LOGS, LogReader, describe

    if dry_run:
        streams = {"logGroupName": TRAINING_LOGS, "logStreamNamePrefix": f"{job}/"}
        show_dry_run(
            Call("sagemaker", "describe_training_job", {"TrainingJobName": job}),
            Call("logs", "describe_log_streams", streams),
        )
        return
    if following:
        watch(account, job)
        return
    describe(account.aws, job)
    for line in LogReader(account.aws, job).lines():
        click.echo(line)


@command()
@click.argument("job")
@dry_run_option
@click.pass_obj
def stop(account: Account, job: str, dry_run: bool) -> None:
    """Stop JOB, which saves its checkpoint and best model.

    A tuning job stops its trials.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.jobs import RUNNING
    from alexmri.aws.tuning import describe_either, is_tuning

    call = Call("sagemaker", "stop_training_job", {"TrainingJobName": job})
    if dry_run:
        show_dry_run(call)
        return
    described, again = describe_either(account.aws, job), "train"
    if is_tuning(described):
        name, again = {"HyperParameterTuningJobName": job}, "tune"
        call = Call("sagemaker", "stop_hyper_parameter_tuning_job", name)
        found = described["HyperParameterTuningJobStatus"]
    else:
        found = described["TrainingJobStatus"]
    if found not in RUNNING:
        click.echo(f"{job} is not running; its status is {found}")
    elif found == "Stopping":
        click.echo(f"{job} is being stopped already")
    else:
        call.submit(account.aws)
        click.echo(f"{job} is being stopped; the same `{again}` command goes on from there")


@command()
@click.argument("job")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="default: runs/JOB")
@dry_run_option
@click.pass_obj
def download(account: Account, job: str, out: Path | None, dry_run: bool) -> None:
    """Fetch model, report and figures of JOB.

    They lie as `alexmri train` leaves them. Of a tuning job, those of its best trial.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.jobs import download as do_download
    from alexmri.aws.tuning import trained_by
    from alexmri.files import path_inside
    from alexmri.terminal import choose_terminal

    if dry_run:
        bucket = account.config.require("bucket")
        keys = [f"{account.config.prefix}/jobs/{job}/output/{name}.tar.gz" for name in RESULTS]
        show_dry_run(
            Call("sagemaker", "describe_training_job", {"TrainingJobName": job}),
            *(Call("s3", "get_object", {"Bucket": bucket, "Key": key}) for key in keys),
        )
        return
    terminal = choose_terminal()
    runs = path_inside(Path("runs"), job).parent
    job = trained_by(account.aws, job, terminal)
    do_download(account.aws, job, out or runs / job, terminal)


RESULTS = ("output", "model")
