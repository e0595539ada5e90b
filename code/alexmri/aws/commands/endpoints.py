"""`alexmri aws deploy, invoke, transform, rollback, delete, trace`: what serves."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alexmri.aws.cli import Account, dry_run_option, show_dry_run
from alexmri.errors import UserError
from alexmri.options import command

if TYPE_CHECKING:
    from alexmri.aws.requests.endpoints import Hosting
    from alexmri.aws.scaling import Bounds

# What AWS offers.
MEMORY = tuple(str(1024 * number) for number in range(1, 7))
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@command()
@click.argument("version", required=False)
@click.option("--endpoint", help="name of the endpoint (default: name in alexmri.toml)")
@click.option("--unapproved", is_flag=True, help="also take a version that is not approved")
@click.option("--gpu", is_flag=True, help="serve on endpoint_gpu_instance, at a higher price")
@click.option(
    "--min-instances",
    type=click.IntRange(0, 100),
    help="smallest number of instances (default: 1; 0 with --async)",
)
@click.option(
    "--max-instances",
    type=click.IntRange(1, 100),
    help="let the endpoint scale, up to so many instances",
)
@click.option("--serverless", is_flag=True, help="no instances: paid by the request")
@click.option("--memory-mb", type=click.Choice(MEMORY), help="default: 4096; with --serverless")
@click.option(
    "--max-concurrency",
    type=click.IntRange(1, 200),
    help="requests at once (default: 5); with --serverless",
)
@click.option(
    "--async",
    "asynchronous",
    is_flag=True,
    help="requests and answers by S3; no instance without requests",
)
@click.option("--s3-output", metavar="S3", help="where answers are written; with --async")
@click.option(
    "--notify", metavar="ARN", help="SNS topic that is notified of each answer; with --async"
)
@click.option("--detach", is_flag=True, help="do not wait until it serves")
@dry_run_option
@click.pass_obj
def deploy(
    account: Account,
    /,
    version: str | None,
    endpoint: str | None,
    unapproved: bool,
    detach: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Serve VERSION, or the newest approved one.

    An update is undone when alarms go off. What it costs is said before anything is made. An
    endpoint answers at once, on instances, unless --serverless or --async says otherwise. It keeps
    its number of instances unless --max-instances is given, or was given before.
    """
    from alexmri.aws.endpoints import deploy as do_deploy
    from alexmri.aws.endpoints import deploy_calls, rests
    from alexmri.aws.registry import choose_version, cpu_specification, cuda_of
    from alexmri.aws.requests.endpoints import SERVERLESS, has_gpu
    from alexmri.aws.requests.registry import package_arn
    from alexmri.terminal import choose_terminal

    hosting, bounds = _hosting(account, **options)
    if options["gpu"]:
        account.use(endpoint_instance=account.config.endpoint_gpu_instance)
    name = endpoint or account.config.name
    if dry_run:
        wanted = version or "<newest approved>"
        package = package_arn(account.config, account.config.require("region"), wanted)
        show_dry_run(*deploy_calls(account.config, name, package, hosting, bounds))
        return
    terminal = choose_terminal()
    package = choose_version(account.aws, version, any_version=unapproved)
    account.use(cuda=cuda_of(account.aws, package))
    on_gpu = hosting.kind != SERVERLESS and has_gpu(account.config.endpoint_instance)
    image = None if on_gpu else cpu_specification(account.aws, package)
    made = do_deploy(account.aws, name, package, hosting, bounds, terminal, image)
    if not detach or rests(account.aws, name, made):
        _wait(account, name, made)


def _hosting(
    account: Account,
    *,
    gpu: bool,
    min_instances: int | None,
    max_instances: int | None,
    serverless: bool,
    memory_mb: str | None,
    max_concurrency: int | None,
    asynchronous: bool,
    s3_output: str | None,
    notify: str | None,
) -> "tuple[Hosting, Bounds | None]":
    """Return what the options of `deploy` say; UserError where they contradict each other."""
    from alexmri.aws.requests.endpoints import ASYNCHRONOUS, REAL_TIME, SERVERLESS, Hosting
    from alexmri.aws.scaling import Bounds

    config = account.config
    low = (0 if asynchronous else 1) if min_instances is None else min_instances
    refusals = {
        "--serverless and --async exclude each other; leave one out": serverless and asynchronous,
        "a serverless endpoint has no GPU; leave --gpu or --serverless out": serverless and gpu,
        "a serverless endpoint has no instances: AWS scales it up to --max-concurrency; leave"
        " --min-instances and --max-instances out": (
            serverless and (min_instances is not None or max_instances is not None)
        ),
        "a serverless endpoint cannot be in a VPC; leave subnets and security_groups out": (
            serverless and bool(config.subnets)
        ),
        "a serverless endpoint cannot capture data; set data_capture_percent to 0": (
            serverless and config.data_capture_percent > 0
        ),
        "--memory-mb and --max-concurrency belong to --serverless; add it, or leave them out": (
            not serverless and (memory_mb is not None or max_concurrency is not None)
        ),
        "--s3-output and --notify belong to --async; add it, or leave them out": (
            not asynchronous and (s3_output is not None or notify is not None)
        ),
        f"--s3-output {s3_output} is not an S3 address; write s3://BUCKET/FOLDER": (
            s3_output is not None and not re.match(r"s3://[^/]+/.", s3_output)
        ),
        f"--notify {notify} is not an SNS topic; write arn:aws:sns:REGION:ACCOUNT:NAME": (
            notify is not None and not re.fullmatch(r"arn:aws[a-z-]*:sns:[^:]+:\d{12}:.+", notify)
        ),
        "--min-instances goes with --max-instances; give both": (
            min_instances is not None and max_instances is None
        ),
        "an endpoint without instances cannot answer; give --min-instances 1, or --async": (
            not asynchronous and low == 0
        ),
        f"--min-instances {low} is more than --max-instances {max_instances}; give it no more": (
            max_instances is not None and low > max_instances
        ),
    }
    for sentence, applies in refusals.items():
        if applies:
            raise UserError(sentence)
    kind = SERVERLESS if serverless else ASYNCHRONOUS if asynchronous else REAL_TIME
    hosting = Hosting(kind, int(memory_mb or 4096), max_concurrency or 5, s3_output, notify)
    return hosting, Bounds(low, max_instances) if max_instances else None


def _wait(account: Account, name: str, wanted: str) -> None:
    from alexmri.aws.endpoints import settle
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    try:
        settle(account.aws, name, wanted, terminal)
    except KeyboardInterrupt:
        terminal.say(f"stopped waiting; {name} goes on. Run the same command to wait again")
        sys.exit(130)
    terminal.say(f"{name} serves. To end its costs: alexmri aws delete {name}")


@command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--endpoint", help="name of the endpoint (default: name in alexmri.toml)")
@click.option("--async", "asynchronous", is_flag=True, help="the endpoint is one of deploy --async")
@dry_run_option
@click.pass_obj
def invoke(
    account: Account,
    files: tuple[Path, ...],
    endpoint: str | None,
    asynchronous: bool,
    dry_run: bool,
) -> None:
    """Print what the endpoint says about FILES.

    Each file has one line of JSON. With --async, it says where in S3 its answer or its failure will
    be.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.endpoints import invoke as do_invoke
    from alexmri.aws.endpoints import invoke_async, invoke_async_requests, invoke_request

    name = endpoint or account.config.name
    for file in files:
        if dry_run and asynchronous:
            put, request = invoke_async_requests(account.config, name, file)
            show_dry_run(
                Call("s3", "put_object", {**put, "Body": f"<{file}>"}),
                Call("sagemaker-runtime", "invoke_endpoint_async", request),
            )
        elif dry_run:
            request = {**invoke_request(name, file), "Body": f"<{file}>"}
            show_dry_run(Call("sagemaker-runtime", "invoke_endpoint", request))
        elif asynchronous:
            click.echo(json.dumps({"file": str(file), **invoke_async(account.aws, name, file)}))
        else:
            answer = do_invoke(account.aws, name, file)
            try:
                told = json.loads(answer)
            except ValueError:
                told = answer
            click.echo(json.dumps({"file": str(file), "answer": told}, ensure_ascii=False))


@command()
@click.argument("source", metavar="S3")
@click.option("--version", help="version of the model (default: the newest approved one)")
@click.option("--content-type", default="image/jpeg", show_default=True)
@click.option("--unapproved", is_flag=True, help="also take a version that is not approved")
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
    """Classify all images below S3, without an endpoint."""
    from alexmri.aws.jobs import transform as do_transform
    from alexmri.aws.jobs import transform_calls, wait_transformed
    from alexmri.aws.registry import choose_version, cpu_specification, cuda_of
    from alexmri.aws.requests.endpoints import has_gpu
    from alexmri.aws.requests.registry import package_arn
    from alexmri.terminal import choose_terminal

    if not source.startswith("s3://"):
        raise UserError(f"{source} is not an S3 address; `alexmri aws upload {source}` prints one")
    if dry_run:
        wanted = version or "<newest approved>"
        package = package_arn(account.config, account.config.require("region"), wanted)
        show_dry_run(*transform_calls(account.config, package, source, content_type))
        return
    terminal = choose_terminal()
    package = choose_version(account.aws, version, any_version=unapproved)
    account.use(cuda=cuda_of(account.aws, package))
    on_gpu = has_gpu(account.config.transform_instance)
    image = None if on_gpu else cpu_specification(account.aws, package)
    job = do_transform(account.aws, package, source, content_type, terminal, image)
    if detach:
        return
    try:
        terminal.say(f"answers: {wait_transformed(account.aws, job, terminal)}")
    except KeyboardInterrupt:
        terminal.say(f"stopped waiting; {job} goes on. Run the same command to wait again")
        sys.exit(130)


@command()
@click.option("--endpoint", help="name of the endpoint (default: name in alexmri.toml)")
@click.option("--detach", is_flag=True, help="do not wait until it serves")
@dry_run_option
@click.pass_obj
def rollback(account: Account, endpoint: str | None, detach: bool, dry_run: bool) -> None:
    """Have the endpoint serve what it served before."""
    from alexmri.aws.client import Call
    from alexmri.aws.endpoints import rollback as do_rollback
    from alexmri.aws.requests.endpoints import REAL_TIME, update_request
    from alexmri.terminal import choose_terminal

    name = endpoint or account.config.name
    if dry_run:
        before = "<the configuration before>"
        request = update_request(account.config, name, before, kind=REAL_TIME, scaled=False)
        show_dry_run(
            Call("sagemaker", "describe_endpoint", {"EndpointName": name}),
            Call("sagemaker", "update_endpoint", request),
        )
        return
    previous = do_rollback(account.aws, name, choose_terminal())
    if not detach:
        _wait(account, name, previous)


@command()
@click.argument("endpoint")
@click.option("--yes", is_flag=True, help="remove without a confirmation")
@dry_run_option
@click.pass_obj
def delete(account: Account, endpoint: str, yes: bool, dry_run: bool) -> None:
    """Remove ENDPOINT and all that goes with it.

    What that is, and what it costs, is said first. Versions, training jobs and what is in S3 stay.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.requests.endpoints import alarm_names
    from alexmri.aws.requests.scaling import target_of
    from alexmri.aws.teardown import teardown

    if dry_run:
        name = {"EndpointConfigName": "<each configuration of it>"}
        alarms = {"AlarmNames": list(alarm_names(account.config, endpoint))}
        show_dry_run(
            Call("application-autoscaling", "deregister_scalable_target", target_of(endpoint)),
            Call("sagemaker", "delete_endpoint", {"EndpointName": endpoint}),
            Call("sagemaker", "delete_endpoint_config", name),
            Call("sagemaker", "delete_model", {"ModelName": "<each model of these>"}),
            Call("cloudwatch", "delete_alarms", alarms),
        )
        return
    found = list(teardown(account.aws, endpoint))
    if not found:
        click.echo(f"{endpoint} does not exist, and nothing of it is left")
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


@command()
@click.argument("endpoint")
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of lines")
@dry_run_option
@click.pass_obj
def trace(account: Account, endpoint: str, as_json: bool, dry_run: bool) -> None:
    """Trace ENDPOINT back to version, code and data.

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
