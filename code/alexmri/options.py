"""Every setting as an option of a command, and the settings that come of those given."""

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from alexmri.errors import UserError
from alexmri.files import require_json_object
from alexmri.settings import Layer, Resolved, Settings, environment_layer, resolve

Command = Callable[..., Any]


def settings_options(command: Command) -> Command:
    """Give `command` one option for each setting; those that were given arrive in `options`."""
    for name, field in reversed(Settings.model_fields.items()):
        option = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            declared = click.option(
                f"{option}/--no-{option[2:]}", name, default=None, help=field.description
            )
        else:
            declared = click.option(option, name, metavar="VALUE", help=field.description)
        command = declared(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="JSON or TOML file of settings; options and ALEXMRI_* variables win over it",
    )(command)


def read_settings(
    config_file: Path | None,
    options: Mapping[str, Any],
    *fallback: Layer,
    environment: Mapping[str, str] = os.environ,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge the sources of settings over the recipe they name; the first that has a value wins.

    They are options, environment, the content of hyperparameters.json, config file and `fallback`.

    Raises:
        UserError: unknown settings, values that do not fit, or a file that cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    layers = [Layer("command line", given), environment_layer(environment)]
    if hyperparameters:
        # Values usually are strings, and some clients put JSON into them: `resolve` takes both.
        layers.append(Layer("hyperparameters.json", hyperparameters))
    if config_file:
        layers.append(Layer(config_file.name, _read_config(config_file)))
    return resolve([*layers, *fallback])


@click.command("train", add_help_option=False)
@settings_options
def _train(config_file: Path | None, **options: Any) -> None:
    """Take the options of `container/train`, which are those of `alexmri train`."""


def read_settings_of_job(
    arguments: Sequence[str], environment: Mapping[str, str], hyperparameters: Mapping[str, Any]
) -> Settings:
    """Return the settings of a job that a platform starts; see `read_settings`.

    Raises:
        UserError: as `read_settings`, and for arguments that are no options.
    """
    try:
        given = _train.make_context("train", list(arguments)).params
    except click.ClickException as error:
        raise UserError(
            f"{error.format_message().rstrip('.')}; settings are given as --epochs 3 or --epochs=3,"
            " and `alexmri config` lists them"
        ) from None
    config_file = given.pop("config_file")
    return read_settings(
        config_file, given, environment=environment, hyperparameters=hyperparameters
    ).settings


def _read_config(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".toml":
        return require_json_object(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid TOML: it is nested too deeply") from None
