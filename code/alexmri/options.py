"""Every setting as an option of a command, and the settings that come of those given."""

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from alexmri.errors import UserError
from alexmri.settings import Layer, Resolved, Settings, environment_layer, resolve

Command = Callable[..., Any]


def settings_options(command: Command) -> Command:
    """Give `command` one option for each setting; those that were given arrive in `options`."""
    for name, field in reversed(Settings.model_fields.items()):
        # What is on or off is also switched on by its name alone.
        alone: dict[str, Any] = {}
        if field.annotation is bool:
            alone = {"is_flag": False, "flag_value": "true"}
        command = click.option(
            f"--{name.replace('_', '-')}", name, metavar="VALUE", help=field.description, **alone
        )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="JSON or TOML file of settings; options and ALEXMRI_* variables win over it",
    )(command)


def read_settings(
    config_file: Path | None, options: Mapping[str, Any], *fallback: Layer
) -> Resolved:
    """Merge options, environment, config file and `fallback` over the recipe they name."""
    given = {name: value for name, value in options.items() if value is not None}
    layers = [Layer("command line", given), environment_layer(os.environ)]
    if config_file:
        layers.append(Layer(config_file.name, _read_config(config_file)))
    return resolve([*layers, *fallback])


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON (or TOML, named .toml): {error}") from None
    except RecursionError:
        raise UserError(f"{path} holds no settings: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise UserError(f'{path} must hold one object of settings, such as {{"epochs": 40}}')
    return content
