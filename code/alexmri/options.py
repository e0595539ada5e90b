"""Every setting as an option of a command, and the settings that come of those given."""

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from alexmri.errors import UserError
from alexmri.files import require_json_object
from alexmri.settings import Layer, Resolved, Settings, environment_layer, resolve

# The setting that is the first of a section of the help -> the name of the section.
SECTIONS = {
    "recipe": "Network",
    "epochs": "Training",
    "augment": "Augmentation",
    "early_stopping_patience": "Early stopping",
    "split_by": "Data and split",
    "seed": "Computing",
    "checkpoint_every_epochs": "Checkpoints and output",
    "wandb_project": "Weights & Biases",
}
# What users of other programs type, and what there is instead.
FOREIGN_OPTIONS = {
    "--lr": "--learning-rate",
    "--bs": "--batch-size",
    "--wd": "--weight-decay",
    "--img-size": "--image-size",
    "--imgsz": "--image-size",
    "--output": "--out",
    "--name": "--out",
    "--amp": "--precision",
}
NO_OPTION = {"--device": "a GPU is used where there is one, and CUDA_VISIBLE_DEVICES hides it"}


class SettingOption(click.Option):
    """A setting; its value stays a text, which `resolve` reads as it does that of a variable."""

    section = ""


class Command(click.Command):
    """A command whose help has sections, and which tells of an option that is given twice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, which takes the last of two in silence; say it for a setting."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for parameter in {each for each in given if given.count(each) > 1}:
            if isinstance(parameter, SettingOption):
                line = f"warning: {parameter.opts[0]} is given more than once; the last one counts"
                click.echo(line, err=True)
            elif isinstance(parameter, click.Option) and not (
                parameter.multiple or parameter.is_flag or parameter.count
            ):
                raise click.UsageError(f"{parameter.opts[0]} is given twice; give it once", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings below the other options, in their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                section = getattr(parameter, "section", "Options")
                sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)
        if len(sections) > 1:
            formatter.write_paragraph()
            formatter.write_text(
                "Defaults are those of the recipe best; `alexmri config --recipe NAME` shows those"
                " of another one."
            )


command: Callable[..., Callable[[Callable[..., Any]], Command]] = partial(
    click.command, cls=Command
)


def subgroups_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option to measure subgroups by columns of groups.csv, as a text."""
    return click.option(
        "--subgroups",
        metavar="COLUMN,…",
        help="also measure subgroups, by columns of groups.csv; cut numbers at bounds or at thirds"
        " of the subjects: sex,site,age:65:80",
    )(function)


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each setting; those that were given arrive in `options`."""
    defaults = resolve([]).settings
    declared, section = [], ""
    for name, field in Settings.model_fields.items():
        section = SECTIONS.get(name, section)
        option = f"--{name.replace('_', '-')}"
        is_flag = field.annotation is bool
        if is_flag:
            option += f"/--no-{option[2:]}"
        more: dict[str, Any] = {} if is_flag else {"metavar": _metavar(field.annotation)}
        value = getattr(defaults, name)
        text = f"{field.description}" + ("" if value is None else f"  [default: {_shown(value)}]")
        decorate = click.option(option, name, cls=SettingOption, default=None, help=text, **more)
        declared.append((decorate, section))
    for decorate, section in reversed(declared):
        function = decorate(function)
        function.__click_params__[-1].section = section  # type: ignore[attr-defined]
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="JSON or TOML file of settings; options and ALEXMRI_* variables win over it",
    )(function)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return f"[{'|'.join(map(str, get_args(annotation)))}]"
    names = {int: "INTEGER", float: "NUMBER", str: "TEXT"}
    return next((names[each] for each in _kinds(annotation) if each in names), "TEXT")


def _kinds(annotation: Any) -> list[Any]:
    """Return the types in an annotation, such as that of a number that may be none."""
    inside = get_args(annotation)
    return [annotation] if not inside else [each for part in inside for each in _kinds(part)]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{each:g}" for each in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def explain_unknown(error: click.NoSuchOption) -> click.UsageError:
    """Return the error with a likely option in place of click's guess, which is often unlike it."""
    typed = error.option_name
    if typed in NO_OPTION:
        return click.UsageError(f"There is no {typed}: {NO_OPTION[typed]}.", error.ctx)
    known = [name for each in error.ctx.command.params for name in each.opts] if error.ctx else []
    instead = FOREIGN_OPTIONS.get(typed, "")
    near = [instead] if instead in known else difflib.get_close_matches(typed, known, 1, 0.75)
    hint = f" Did you mean {near[0]}?" if near else ""
    return click.UsageError(f"There is no option {typed}.{hint}", error.ctx)


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


@command("train", add_help_option=False)
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
        shown = explain_unknown(error) if isinstance(error, click.NoSuchOption) else error
        raise UserError(
            f"{shown.format_message().rstrip('.')}; settings are given as --epochs 3 or --epochs=3,"
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
