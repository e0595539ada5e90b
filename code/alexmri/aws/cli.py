"""The command group `alexmri aws`, whose commands are only imported when they are asked for."""

from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from alexmri.aws.client import Aws, Call, Run
    from alexmri.aws.config import AwsConfig

# Command -> module of alexmri.aws.commands, in the order in which a newcomer needs them.
COMMANDS = {
    "setup": "setup",
    "push": "setup",
    "upload": "setup",
    "metric-definitions": "jobs",
    "train": "jobs",
    "tune": "jobs",
    "status": "jobs",
    "logs": "jobs",
    "stop": "jobs",
    "download": "jobs",
    "register": "registry",
    "versions": "registry",
    "approve": "registry",
    "reject": "registry",
    "deploy": "endpoints",
    "invoke": "endpoints",
    "transform": "endpoints",
    "rollback": "endpoints",
    "delete": "endpoints",
    "trace": "endpoints",
    "pipeline": "pipeline",
}


class Account:
    """What the commands of the group share: the configuration, read when it is first needed."""

    def __init__(self, file: Path | None, options: Mapping[str, str]) -> None:
        self._file, self._options = file, options

    @property
    def file(self) -> Path:
        """The configuration, whether it is there or not."""
        from alexmri.aws.config import DEFAULT_FILE

        return self._file or DEFAULT_FILE

    @cached_property
    def config(self) -> "AwsConfig":
        from alexmri.aws.config import read_config

        return read_config(self._file, self._options)

    def use(self, **values: str) -> None:
        """Put `values` in place of keys of the configuration."""
        self.config = self.config.model_copy(update=values)
        if "aws" in self.__dict__:
            self.aws.config = self.config

    def image(self, given: str | None, *, dry_run: bool) -> tuple[str, str]:
        """Return the image of a training as REPOSITORY@sha256:…, and the tag that names it."""
        from alexmri.aws.image import find_image, planned_image, wanted_image

        wanted = wanted_image(self.config, given)
        return planned_image(wanted) if dry_run else find_image(self.aws, wanted)

    @cached_property
    def aws(self) -> "Aws":
        from alexmri.aws.client import Aws

        return Aws(self.config)


class LazyGroup(click.Group):
    """Imports the module of a command when the command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"alexmri.aws.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Add one option for each key of alexmri.toml."""
        from alexmri.aws.config import AwsConfig, example

        return [
            *super().get_params(ctx),
            *(
                click.Option(
                    [f"--{key.replace('_', '-')}", key],
                    metavar=example(key),
                    help=field.description,
                    expose_value=True,
                )
                for key, field in AwsConfig.model_fields.items()
            ),
        ]


@click.group(cls=LazyGroup)
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="configuration (default: alexmri.toml, where it is here); options win over it",
)
@click.pass_context
def aws(context: click.Context, /, config_file: Path | None, **options: str | None) -> None:
    """Use SageMaker: image, data, jobs, versions, endpoints.

    Options before the command stand for keys of alexmri.toml. Every command is safe to run twice,
    and --dry-run shows what a command would do, without a request to AWS.
    """
    given = {key: value for key, value in options.items() if value is not None}
    context.obj = Account(config_file, given)


def dry_run_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `command` the option --dry-run."""
    return click.option("--dry-run", is_flag=True, help="print the requests as JSON and send none")(
        command
    )


def show_dry_run(*steps: "Call | Run") -> None:
    """Print what would be done."""
    from alexmri.aws.client import dry_run_text

    click.echo(dry_run_text(steps))
