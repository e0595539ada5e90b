"""Write docs/reference.md from the code and docs/reference.md.jinja: `make reference`."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alexmri.cli import cli
from alexmri.evaluation.robustness import CHANGES
from alexmri.options import SECTIONS, SettingOption
from alexmri.serving import schemas
from alexmri.settings import (
    AUGMENT_LIMITS,
    ENVIRONMENT_PREFIX,
    SWITCHES,
    Layer,
    Settings,
    recipe_names,
    resolve,
)

DOCS = Path(__file__).parent
PAGE = DOCS / "reference.md"
WIDTH = 100
WORDS = {
    "array": "list",
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "null": "none",
    "number": "number",
    "object": "object",
    "string": "text",
}
# A bound in a JSON schema -> how it is written.
BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "and below {}",
}


def render() -> str:
    """Return the page as the code makes it now."""
    environment = Environment(
        loader=FileSystemLoader(DOCS),
        autoescape=False,  # noqa: S701 - Markdown, of our own texts
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "code": code, "values": values, "wrap": wrap}
    description = schemas.openapi()
    return environment.get_template("reference.md.jinja").render(
        sections=settings_by_section(),
        switches=SWITCHES,
        commands=list(commands(click.Context(cli, info_name="alexmri"))),
        description=description,
        routes=list(routes(description)),
        errors=schemas.ERRORS,
        retry_after=schemas.RETRY_AFTER,
        changes=CHANGES,
    )


def settings_by_section() -> dict[str, list[dict[str, Any]]]:
    """Return section of the help -> its settings."""
    properties = Settings.model_json_schema()["properties"]
    options = {
        parameter.name: parameter
        for parameter in cli.commands["train"].params
        if isinstance(parameter, SettingOption)
    }
    by_recipe = {name: resolve([Layer("page", {"recipe": name})]).settings for name in recipes()}
    defaults = resolve([]).settings
    found: dict[str, list[dict[str, Any]]] = {}
    section = ""
    for name, field in Settings.model_fields.items():
        section = SECTIONS.get(name, section)
        option = options[name]
        found.setdefault(section, []).append(
            {
                "name": name,
                "option": "/".join([*option.opts, *option.secondary_opts]),
                "variable": f"{ENVIRONMENT_PREFIX}{name.upper()}",
                "takes": values(properties[name]),
                "default": shown(getattr(defaults, name)),
                "others": others(name, by_recipe),
                "meaning": field.description,
            }
        )
    return found


def recipes() -> list[str]:
    """Return the recipes beside the default one."""
    return [name for name in recipe_names() if name != Settings.model_fields["recipe"].default]


def others(name: str, by_recipe: dict[str, Settings]) -> str:
    """Return where a recipe has another value than the default one, as "`0.1` (NAME, NAME)"."""
    if name == "recipe":
        return ""
    default = getattr(resolve([]).settings, name)
    found: dict[str, list[str]] = {}
    for recipe, settings in by_recipe.items():
        idle = settings.augment == "none" and name in ("augment_probability", *AUGMENT_LIMITS)
        if not idle and (value := getattr(settings, name)) != default:
            found.setdefault(shown(value), []).append(recipe)
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in found.items())


def values(schema: dict[str, Any]) -> str:
    """Return in words which values a JSON schema takes."""
    if reference := schema.get("$ref"):
        return f"`{reference.rpartition('/')[2]}`"
    if kinds := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(map(values, kinds)))
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(map(shown, choices))
    if places := schema.get("prefixItems"):
        return f"{len(places)} numbers"
    if schema.get("items"):
        return f"list of {values(schema['items'])}"
    words = WORDS.get(schema.get("type", ""), "any JSON")
    bounds = [text.format(_number(schema[key])) for key, text in BOUNDS.items() if key in schema]
    return " ".join([words, *bounds])


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}" if value < 1e6 else f"{value:.0f}"


def shown(value: Any) -> str:
    """Return a value as somebody would type it."""
    if isinstance(value, tuple):
        return f"`{','.join(f'{each:g}' for each in value)}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if value is None:
        return "none"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def commands(context: click.Context) -> Iterator[dict[str, Any]]:
    """Yield a command and those below it: name, usage, one line, and its options but settings."""
    command = context.command
    own = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    records = [each.get_help_record(context) for each in own if not isinstance(each, SettingOption)]
    yield {
        "name": context.command_path,
        "usage": " ".join([context.command_path, *command.collect_usage_pieces(context)]),
        "line": " ".join(inspect.cleandoc(command.help or "").partition("\n\n")[0].split()),
        "options": [record for record in records if record and "--help" not in record[0]],
        "takes_settings": any(isinstance(each, SettingOption) for each in own),
    }
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if below := command.get_command(context, name):
                yield from commands(click.Context(below, parent=context, info_name=name))


def routes(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each route of the server: method, path, summary, types of the answer, statuses."""
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            yield {
                "method": method.upper(),
                "path": path,
                "summary": operation["summary"],
                "types": list(answers["200"].get("content", {})),
                "statuses": list(answers),
            }


def cell(text: str) -> str:
    """Return a text as the cell of a Markdown table."""
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", text.replace("|", "\\|").replace("*", "\\*"))


def code(names: Iterable[str]) -> str:
    """Return names as a list of code."""
    return ", ".join(f"`{name}`" for name in names)


def wrap(text: str) -> str:
    """Return a paragraph in lines that fit the page."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
