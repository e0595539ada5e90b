"""The door for people: the command `alexmri`.

Heavy modules are imported inside the commands (`alexmri.commands`), so that `--help` answers at
once.
"""

import sys
from typing import NoReturn

import click

from alexmri.aws.cli import aws
from alexmri.commands.data import audit, demo_data, slices
from alexmri.commands.model import evaluate, export, predict, serve
from alexmri.commands.training import config, crossval, train
from alexmri.errors import UserError
from alexmri.options import explain_unknown
from alexmri.terminal import prepare_output


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alexmri")
def cli() -> None:
    """Train AlexNet on brain-MRI slices, measure it honestly, use it.

    Research software. Not a medical device; not for diagnosis.
    """


for command in (
    *(demo_data, slices, audit, train, crossval, config),
    *(evaluate, predict, export, serve, aws),
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    prepare_output()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        shown = explain_unknown(error) if isinstance(error, click.NoSuchOption) else error
        shown.show()
        sys.exit(error.exit_code)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except RuntimeError as error:
        from alexmri.contract.failure import remedy

        # A GPU without memory, for example: known, and no fault of the program.
        if not (cause := remedy(f"{type(error).__name__}: {error}")):
            raise
        click.echo(f"error: {cause}: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"error: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
