"""`alexmri aws register, versions, approve, reject`: the model registry."""

import click

from alexmri.aws.cli import Account, dry_run_option, show_dry_run
from alexmri.options import command


@command()
@click.argument("job")
@dry_run_option
@click.pass_obj
def register(account: Account, job: str, dry_run: bool) -> None:
    """Register the model of JOB as a version.

    The version waits for an approval. Of a tuning job, that of its best trial.

    With it are kept: figures and report, image digest, git revision, data and its fingerprint.
    """
    from alexmri.aws.registry import register as do_register
    from alexmri.aws.registry import register_calls
    from alexmri.aws.tuning import trained_by
    from alexmri.terminal import choose_terminal

    if dry_run:
        show_dry_run(*register_calls(account.config, job))
        return
    account.config.require("bucket")
    terminal = choose_terminal()
    arn = do_register(account.aws, trained_by(account.aws, job, terminal), terminal)
    version = arn.rpartition("/")[2]
    click.echo(f"version {version}: {arn}")
    click.echo(f"to approve it: alexmri aws approve {version}")


@command()
@dry_run_option
@click.pass_obj
def versions(account: Account, dry_run: bool) -> None:
    """List the versions of the model, newest first."""
    from rich.markup import escape
    from rich.table import Table

    from alexmri.aws.client import Call
    from alexmri.aws.registry import describe_package, packages
    from alexmri.terminal import print_table

    if dry_run:
        request = {"ModelPackageGroupName": account.config.name}
        show_dry_run(Call("sagemaker", "list_model_packages", request))
        return
    table = Table("version", "status", "test macro F1", "split by", "revision", "data", "job")
    for package in packages(account.aws):
        described = describe_package(account.aws, package["ModelPackageArn"])
        known = described.get("CustomerMetadataProperties") or {}
        shown = (
            str(package.get("ModelPackageVersion", "-")),
            str(described.get("ModelApprovalStatus", "-")),
            known.get("test_macro_f1", "-"),
            known.get("split_by", "-"),
            known.get("git_revision", "-")[:12],
            known.get("data_fingerprint", known.get("data_upload", "-"))[:12],
            known.get("training_job", "-"),
        )
        table.add_row(*(escape(each) for each in shown))
    print_table(table)


@command()
@click.argument("version")
@click.option("--reason", help="kept with the decision")
@dry_run_option
@click.pass_obj
def approve(account: Account, version: str, reason: str | None, dry_run: bool) -> None:
    """Approve VERSION: from now on it may be deployed."""
    _decide(account, version, "Approved", reason, dry_run)


@command()
@click.argument("version")
@click.option("--reason", help="kept with the decision")
@dry_run_option
@click.pass_obj
def reject(account: Account, version: str, reason: str | None, dry_run: bool) -> None:
    """Reject VERSION: it will not be deployed."""
    _decide(account, version, "Rejected", reason, dry_run)


def _decide(account: Account, version: str, status: str, reason: str | None, dry_run: bool) -> None:
    from alexmri.aws.client import Call
    from alexmri.aws.registry import decide
    from alexmri.aws.requests.registry import approval_request, package_arn

    if dry_run:
        arn = package_arn(account.config, account.config.require("region"), version)
        show_dry_run(
            Call("sagemaker", "update_model_package", approval_request(arn, status, reason))
        )
        return
    click.echo(decide(account.aws, version, status, reason))
