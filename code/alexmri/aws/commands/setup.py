"""`alexmri aws policy, doctor, push, upload`: an account, and what has to be there first."""

import json
import sys
from pathlib import Path

import click

from alexmri.aws.cli import Account, dry_run_option, show_dry_run
from alexmri.aws.policy import KINDS
from alexmri.errors import UserError

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.pass_obj
def policy(account: Account, kind: str) -> None:
    """Print a least-privilege IAM document, made from the configuration.

    caller: for whoever uses these commands. training, endpoint, pipeline: for the roles. trust: the
    trust policy of these roles. Asks AWS for nothing.
    """
    from alexmri.aws.policy import policy as document_of

    config = account.config
    click.echo(json.dumps(document_of(config, kind, config.require("region")), indent=2))


@click.command()
@dry_run_option
@click.pass_obj
def doctor(account: Account, dry_run: bool) -> None:
    """Check credentials, roles, bucket, repository and driver; say what to fix. Changes nothing.

    Exit code 1: something is wrong.
    """
    from alexmri.aws.doctor import examine, reads

    if dry_run:
        show_dry_run(*reads(account.config))
        return
    verdicts = []
    for finding in examine(account.aws):
        sign = {"ok": "ok     ", "wrong": "WRONG  ", "unknown": "unknown"}[finding.verdict]
        click.echo(f"{sign}  {finding.what}: {finding.words}")
        verdicts.append(finding.verdict)
    sys.exit(1 if "wrong" in verdicts else 0)


@click.command()
@click.argument("folder", type=FOLDER, default=".")
@click.option("--image", help="push this image of this machine; build nothing")
@click.option("--build-arg", "build_arguments", multiple=True, metavar="NAME=VALUE")
@click.option("--allow-dirty", is_flag=True, help="also with changes that are not committed")
@dry_run_option
@click.pass_obj
def push(
    account: Account,
    folder: Path,
    image: str | None,
    build_arguments: tuple[str, ...],
    allow_dirty: bool,
    dry_run: bool,
) -> None:
    """Build the image of FOLDER (default: here), push it to ECR, print its name with its digest.

    The tag is the git revision. A revision that is there already is neither built nor pushed.
    """
    from alexmri.aws.image import Source, push_calls, revision_of
    from alexmri.aws.image import push as do_push
    from alexmri.terminal import choose_terminal

    for argument in build_arguments:
        if "=" not in argument:
            raise UserError(f"--build-arg {argument} must look like NAME=VALUE")
    revision = revision_of(folder, allow_dirty=allow_dirty)
    source = Source(folder, revision, build_arguments, image)
    if dry_run:
        show_dry_run(*push_calls(account.config, source, account.config.require("region")))
        return
    click.echo(do_push(account.aws, source, choose_terminal()))


@click.command()
@click.argument("folder", type=FOLDER)
@dry_run_option
@click.pass_obj
def upload(account: Account, folder: Path, dry_run: bool) -> None:
    """Bring FOLDER to S3, below a prefix named by its content; print the address.

    Only what is missing is sent, each file with a checksum that S3 compares. What an earlier upload
    holds is copied within S3. Hidden files are left out.
    """
    from alexmri.aws.upload import read_folder, upload_calls
    from alexmri.aws.upload import upload as do_upload
    from alexmri.terminal import choose_terminal

    terminal = choose_terminal()
    account.config.require("bucket")
    files = read_folder(folder, terminal)
    if dry_run:
        show_dry_run(*upload_calls(account.config, files))
        return
    done = do_upload(account.aws, files, terminal)
    terminal.say(f"{done.files} files: {done.sent} sent, {done.copied} copied within S3")
    click.echo(done.address)
