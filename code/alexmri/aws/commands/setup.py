"""`alexmri aws setup, push, upload`: what has to be in the account before a training."""

import sys
from pathlib import Path

import click

from alexmri.aws.cli import Account, dry_run_option, show_dry_run
from alexmri.errors import UserError
from alexmri.options import command

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@command()
@dry_run_option
@click.pass_obj
def setup(account: Account, dry_run: bool) -> None:
    """Create or update bucket, repository and roles.

    Their names are written to alexmri.toml. All of it is one CloudFormation stack, named by `name`.
    Bucket and repository stay when the stack is removed.
    """
    from alexmri.aws.client import Call
    from alexmri.aws.stack import deploy_stack, stack_request, write_keys
    from alexmri.terminal import choose_terminal

    if dry_run:
        request = stack_request(account.config, update=False)
        show_dry_run(Call("cloudformation", "create_stack", request))
        return
    terminal = choose_terminal()
    try:
        outputs = deploy_stack(account.aws, terminal)
    except KeyboardInterrupt:
        terminal.say("stopped waiting; the stack goes on. Run the same command to wait again")
        sys.exit(130)
    for key, value in outputs.items():
        click.echo(f"{key}: {value}")
    if write_keys(account.file, outputs):
        terminal.say(f"written to {account.file}")


@command()
@click.argument("folder", type=FOLDER, default=".")
@click.option("--image", help="push this image of this machine; build nothing")
@click.option("--cpu", is_flag=True, help="the small image without CUDA, which CPU endpoints use")
@click.option("--build-arg", "build_arguments", multiple=True, metavar="NAME=VALUE")
@click.option("--allow-dirty", is_flag=True, help="also with changes that are not committed")
@dry_run_option
@click.pass_obj
def push(
    account: Account,
    folder: Path,
    image: str | None,
    cpu: bool,
    build_arguments: tuple[str, ...],
    allow_dirty: bool,
    dry_run: bool,
) -> None:
    """Build the image of FOLDER and push it to ECR.

    FOLDER is the working directory if left out. The name of the image is printed with its digest.
    The tag is the git revision, with --cpu `-cpu` behind it. A revision that is there already is
    neither built nor pushed.
    """
    from alexmri.aws.image import Source, push_calls, revision_of
    from alexmri.aws.image import push as do_push
    from alexmri.terminal import choose_terminal

    for argument in build_arguments:
        if "=" not in argument:
            raise UserError(f"--build-arg {argument} must look like NAME=VALUE")
    if cpu:
        account.use(cuda="cpu")
    revision = revision_of(folder, allow_dirty=allow_dirty)
    source = Source(folder, revision, build_arguments, image)
    if dry_run:
        show_dry_run(*push_calls(account.config, source, account.config.require("region")))
        return
    click.echo(do_push(account.aws, source, choose_terminal()))


@command()
@click.argument("folder", type=FOLDER)
@dry_run_option
@click.pass_obj
def upload(account: Account, folder: Path, dry_run: bool) -> None:
    """Copy FOLDER to S3 and print its address.

    The address is named by the content. Only what is missing is sent, each file with a checksum
    that S3 compares. What an earlier upload holds is copied within S3. Hidden files are left out.
    """
    from alexmri.aws.upload import read_folder, upload_calls
    from alexmri.aws.upload import upload as do_upload
    from alexmri.terminal import choose_terminal, number_of

    terminal = choose_terminal()
    account.config.require("bucket")
    files = read_folder(folder, terminal)
    if dry_run:
        show_dry_run(*upload_calls(account.config, files))
        return
    done = do_upload(account.aws, files, terminal)
    terminal.say(
        f"{number_of(done.files, 'file')}: {done.sent} sent, {done.copied} copied within S3"
    )
    click.echo(done.address)
