"""`alexmri aws pipeline upsert, start, status, show`: from data to a version, by itself."""

import sys
from pathlib import Path
from typing import Any

import click

from alexmri.aws.cli import Account, dry_run_option, show_dry_run
from alexmri.errors import UserError
from alexmri.options import read_settings, settings_options


@click.group()
def pipeline() -> None:
    """Audit, train, evaluate and register, as a pipeline."""


@pipeline.command()
@click.option("--data", required=True, metavar="S3", help="address of the data to train on")
@click.option("--test", metavar="S3", help="address to evaluate on (default: --data)")
@click.option("--image", help="tag, or REPOSITORY@sha256:… (default: this git revision)")
@click.option(
    "--leak-gate/--no-leak-gate",
    default=True,
    show_default=True,
    help="hold back a version where the 1-NN baseline recognises subjects",
)
@dry_run_option
@settings_options
@click.pass_obj
def upsert(
    account: Account,
    /,
    data: str,
    test: str | None,
    image: str | None,
    leak_gate: bool,
    dry_run: bool,
    config_file: Path | None,
    **options: Any,
) -> None:
    """Make or update the pipeline. Options are those of `alexmri train`.

    --data with train, valid and test folders in it is measured on its test folder.
    """
    from alexmri.aws.pipeline import upsert as do_upsert
    from alexmri.aws.pipeline import upsert_calls
    from alexmri.aws.requests.pipeline import pipeline_definition
    from alexmri.aws.requests.training import hyperparameters
    from alexmri.terminal import choose_terminal

    settings = hyperparameters(read_settings(config_file, options))
    for address in (data, test or data):
        if not address.startswith("s3://"):
            raise UserError(f"{address} is not an S3 address; `alexmri aws upload DIR` prints one")
    found, revision = account.image(image, dry_run=dry_run)
    definition = pipeline_definition(
        account.config,
        image=found,
        revision=revision,
        data=data,
        test=test or data,
        settings=settings,
        leak_gate=leak_gate,
    )
    if dry_run:
        show_dry_run(*upsert_calls(account.config, definition))
    else:
        do_upsert(account.aws, definition, choose_terminal())


@pipeline.command()
@click.option(
    "--parameter",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="in place of a default: MinMacroF1, MaxLeakScore, Data, Test, Checkpoints",
)
@dry_run_option
@click.pass_obj
def start(account: Account, given: tuple[str, ...], dry_run: bool) -> None:
    """Start an execution, unless one runs already.

    With other Data give it other Checkpoints too.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.pipeline import start as do_start
    from alexmri.aws.pipeline import start_request
    from alexmri.terminal import choose_terminal

    parameters = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise UserError(f"--parameter {each} must look like NAME=VALUE")
        parameters[name] = value
    if ("Data" in parameters) != ("Checkpoints" in parameters):
        raise UserError(
            "Data and Checkpoints go together: checkpoints belong to one training; give both, or"
            " make the pipeline anew with `alexmri aws pipeline upsert --data …`"
        )
    if dry_run:
        request = start_request(account.config, parameters, "<the execution before>")
        show_dry_run(Call("sagemaker", "start_pipeline_execution", request))
        return
    terminal = choose_terminal()
    arn = do_start(account.aws, parameters, terminal)
    terminal.say(f"execution: {arn}")
    terminal.say("to watch it: alexmri aws pipeline status --follow")


@pipeline.command()
@click.argument("execution", required=False)
@click.option("--follow", is_flag=True, help="go on until it ends")
@dry_run_option
@click.pass_obj
def status(account: Account, execution: str | None, follow: bool, dry_run: bool) -> None:
    """Say how EXECUTION (default: the newest) and its steps are.

    Exit code 1 with --follow: it did not succeed.
    """
    from alexmri.aws.client import Call, wait_until
    from alexmri.aws.pipeline import status as do_status
    from alexmri.terminal import choose_terminal

    if dry_run:
        name = {"PipelineExecutionArn": execution or "<the newest>"}
        show_dry_run(
            Call("sagemaker", "describe_pipeline_execution", name),
            Call("sagemaker", "list_pipeline_execution_steps", name),
        )
        return
    terminal = choose_terminal()
    if not follow:
        _, _, lines = do_status(account.aws, execution)
        for line in lines:
            terminal.say(line)
        return
    last = ""

    def look() -> tuple[str, bool]:
        nonlocal last
        last, _, lines = do_status(account.aws, execution)
        return "\n".join(lines), last not in ("Executing", "Stopping")

    try:
        wait_until(look, terminal)
    except KeyboardInterrupt:
        terminal.say("stopped waiting; the execution goes on. Run the same command to wait again")
        sys.exit(130)
    sys.exit(0 if last == "Succeeded" else 1)


@pipeline.command()
@dry_run_option
@click.pass_obj
def show(account: Account, dry_run: bool) -> None:
    """Print steps, states of the newest execution, and parameters of the pipeline."""
    from alexmri.aws.client import Call
    from alexmri.aws.pipeline import latest, step_lines, stored_definition
    from alexmri.aws.pipeline import status as do_status

    if dry_run:
        show_dry_run(Call("sagemaker", "describe_pipeline", {"PipelineName": account.config.name}))
        return
    definition = stored_definition(account.aws)
    states: dict[str, str] = {}
    newest = latest(account.aws)
    if newest:
        _, states, _ = do_status(account.aws, str(newest["PipelineExecutionArn"]))
    for line in step_lines(definition, states):
        click.echo(line)
