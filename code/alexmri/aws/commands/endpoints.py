"""`alexmri aws deploy, invoke, transform, rollback, delete, trace`: what serves."""

import json
import sys
from pathlib import Path

import click

from alexmri.aws.cli import Account, dry_run_option, show_dry_run
from alexmri.errors import UserError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("version", required=False)
@click.option("--endpoint", help="name of the endpoint (default: name in alexmri.toml)")
@click.option("--unapproved", is_flag=True, help="also a version that nobody approved")
@click.option("--gpu", is_flag=True, help="serve on endpoint_gpu_instance, at a higher price")
@click.option("--detach", is_flag=True, help="do not wait until it serves")
@dry_run_option
@click.pass_obj
def deploy(
    account: Account,
    version: str | None,
    endpoint: str | None,
    gpu: bool,
    unapproved: bool,
    detach: bool,
    dry_run: bool,
) -> None:
    """Serve VERSION (default: the newest approved one); an update is undone when alarms go off.

    What it costs per hour is said before anything is made.
    """
    from alexmri.aws.endpoints import config_name, deploy_calls
    from alexmri.aws.endpoints import deploy as do_deploy
    from alexmri.aws.registry import choose_version, cuda_of
    from alexmri.aws.requests.registry import package_arn
    from alexmri.terminal import choose_terminal

    if gpu:
        account.use(endpoint_instance=account.config.endpoint_gpu_instance)
    name = endpoint or account.config.name
    if dry_run:
        wanted = version or "<newest approved>"
        package = package_arn(account.config, account.config.require("region"), wanted)
        show_dry_run(*deploy_calls(account.config, name, package))
        return
    terminal = choose_terminal()
    package = choose_version(account.aws, version, any_version=unapproved)
    account.use(cuda=cuda_of(account.aws, package))
    do_deploy(account.aws, name, package, terminal)
    if detach:
        return
    _wait(account, name, config_name(account.aws, name, package))


def _wait(account: Account, name: str, wanted: str) -> None:
    from alexmri.aws.endpoints import wait_in_service
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    try:
        wait_in_service(account.aws, name, wanted, terminal)
    except KeyboardInterrupt:
        terminal.say(f"detached; {name} goes on. The same command waits again")
        sys.exit(130)
    terminal.say(f"{name} serves. It costs money until: alexmri aws delete {name}")


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--endpoint", help="name of the endpoint (default: name in alexmri.toml)")
@dry_run_option
@click.pass_obj
def invoke(account: Account, files: tuple[Path, ...], endpoint: str | None, dry_run: bool) -> None:
    """Print what the endpoint says about FILES, one line of JSON for each."""
    from alexmri.aws.client import Call
    from alexmri.aws.endpoints import invoke as do_invoke
    from alexmri.aws.endpoints import invoke_request

    name = endpoint or account.config.name
    for file in files:
        if dry_run:
            request = {**invoke_request(name, file), "Body": f"<{file}>"}
            show_dry_run(Call("sagemaker-runtime", "invoke_endpoint", request))
            continue
        answer = do_invoke(account.aws, name, file)
        try:
            told = json.loads(answer)
        except ValueError:
            told = answer
        click.echo(json.dumps({"file": str(file), "answer": told}, ensure_ascii=False))


@click.command()
@click.argument("source", metavar="S3")
@click.option("--version", help="version of the model (default: the newest approved one)")
@click.option("--content-type", default="image/jpeg", show_default=True)
@click.option("--unapproved", is_flag=True, help="also a version that nobody approved")
@click.option("--detach", is_flag=True, help="do not wait until it is done")
@dry_run_option
@click.pass_obj
def transform(
    account: Account,
    source: str,
    version: str | None,
    content_type: str,
    unapproved: bool,
    detach: bool,
    dry_run: bool,
) -> None:
    """Classify every image below the S3 address, without an endpoint."""
    from alexmri.aws.jobs import transform as do_transform
    from alexmri.aws.jobs import transform_calls, wait_transformed
    from alexmri.aws.registry import choose_version, cuda_of
    from alexmri.aws.requests.registry import package_arn
    from alexmri.terminal import choose_terminal

    if not source.startswith("s3://"):
        raise UserError(f"{source} is no S3 address; `alexmri aws upload {source}` prints one")
    if dry_run:
        wanted = version or "<newest approved>"
        package = package_arn(account.config, account.config.require("region"), wanted)
        show_dry_run(*transform_calls(account.config, package, source, content_type))
        return
    terminal = choose_terminal()
    package = choose_version(account.aws, version, any_version=unapproved)
    account.use(cuda=cuda_of(account.aws, package))
    job = do_transform(account.aws, package, source, content_type, terminal)
    if detach:
        return
    try:
        terminal.say(f"answers: {wait_transformed(account.aws, job, terminal)}")
    except KeyboardInterrupt:
        terminal.say(f"detached; {job} goes on. The same command waits again")
        sys.exit(130)


@click.command()
@click.option("--endpoint", help="name of the endpoint (default: name in alexmri.toml)")
@click.option("--detach", is_flag=True, help="do not wait until it serves")
@dry_run_option
@click.pass_obj
def rollback(account: Account, endpoint: str | None, detach: bool, dry_run: bool) -> None:
    """Have the endpoint serve what it served before."""
    from alexmri.aws.client import Call
    from alexmri.aws.endpoints import rollback as do_rollback
    from alexmri.aws.requests.endpoints import update_request
    from alexmri.terminal import choose_terminal

    name = endpoint or account.config.name
    if dry_run:
        request = update_request(account.config, name, "<the configuration before>")
        show_dry_run(
            Call("sagemaker", "describe_endpoint", {"EndpointName": name}),
            Call("sagemaker", "update_endpoint", request),
        )
        return
    previous = do_rollback(account.aws, name, choose_terminal())
    if not detach:
        _wait(account, name, previous)


@click.command()
@click.argument("endpoint")
@click.option("--yes", is_flag=True, help="remove without a confirmation")
@dry_run_option
@click.pass_obj
def delete(account: Account, endpoint: str, yes: bool, dry_run: bool) -> None:
    """Remove ENDPOINT and all that goes with it, after saying what that is and what it costs.

    Versions, training jobs and what is in S3 stay.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.requests.endpoints import alarm_names
    from alexmri.aws.teardown import teardown

    if dry_run:
        name = {"EndpointConfigName": "<each configuration of it>"}
        alarms = {"AlarmNames": list(alarm_names(account.config, endpoint))}
        show_dry_run(
            Call("sagemaker", "delete_endpoint", {"EndpointName": endpoint}),
            Call("sagemaker", "delete_endpoint_config", name),
            Call("sagemaker", "delete_model", {"ModelName": "<each model of these>"}),
            Call("cloudwatch", "delete_alarms", alarms),
        )
        return
    found = list(teardown(account.aws, endpoint))
    if not found:
        click.echo(f"there is nothing of {endpoint}")
        return
    for each in found:
        click.echo(each.words)
    if not yes:
        click.confirm("remove all of this?", abort=True)
    for each in found:
        each.call.submit(account.aws)
        click.echo(f"removed {each.words.partition(':')[0]}")
    if account.config.bucket:
        captured = account.config.address("capture", endpoint)
        click.echo(f"what remains: {captured} (where requests were captured), versions, jobs")


@click.command()
@click.argument("endpoint")
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of lines")
@dry_run_option
@click.pass_obj
def trace(account: Account, endpoint: str, as_json: bool, dry_run: bool) -> None:
    """Say where the answers of ENDPOINT come from: version, image digest, git revision, data.

    Exit code 1: two accounts of a link disagree, or a link is missing.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.trace import trace as do_trace

    if dry_run:
        show_dry_run(
            Call("sagemaker", "describe_endpoint", {"EndpointName": endpoint}),
            Call(
                "sagemaker", "describe_endpoint_config", {"EndpointConfigName": "<of the endpoint>"}
            ),
            Call("sagemaker", "describe_model", {"ModelName": "<of the configuration>"}),
            Call("sagemaker", "describe_model_package", {"ModelPackageName": "<of the model>"}),
            Call("ecr", "describe_images", {"repositoryName": account.config.repository}),
            Call("sagemaker", "describe_training_job", {"TrainingJobName": "<of the version>"}),
        )
        return
    chain = list(do_trace(account.aws, endpoint))
    if as_json:
        shown = {link.what.replace(" ", "_"): link.value for link in chain}
        doubts = {link.what.replace(" ", "_"): link.doubt for link in chain if link.doubt}
        click.echo(json.dumps({**shown, "doubts": doubts}, indent=2))
    else:
        width = max(len(link.what) for link in chain)
        for link in chain:
            click.echo(f"{link.what:<{width}}  {link.value}")
            if link.doubt:
                click.echo(f"{'':<{width}}  ! {link.doubt}")
    sys.exit(1 if any(link.doubt for link in chain) else 0)
