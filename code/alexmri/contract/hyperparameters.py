"""Read a job's settings from where platforms put them: hyperparameters.json and the arguments."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alexmri.contract.json_files import read_json_object
from alexmri.errors import UserError
from alexmri.settings import Layer, Settings, environment_layer, resolve


def read_settings_of_job(
    arguments: Sequence[str], environment: Mapping[str, str], hyperparameters: Path
) -> Settings:
    """Return the settings of a job: arguments win over the environment, that over the file.

    Raises:
        UserError: unknown settings, or values that do not fit.
    """
    layers = [
        read_arguments(arguments),
        environment_layer(environment),
        read_hyperparameters(hyperparameters),
    ]
    return resolve(layers).settings


def read_hyperparameters(path: Path) -> Layer:
    """Return the content of hyperparameters.json; without the file, a layer that sets nothing.

    Values usually are strings, and some clients put JSON into them: `settings.resolve` takes both.

    Raises:
        UserError: not a JSON object.
    """
    values = read_json_object(path) or {}
    return Layer(path.name, values)


def read_arguments(arguments: Sequence[str]) -> Layer:
    """Return the settings in `--epochs 3 --batch-size=64`.

    Raises:
        UserError: an argument that is no option, or an option without a value.
    """
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise UserError(
                f"unexpected argument '{argument}'; settings are given as --epochs 3 or --epochs=3"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"the argument '{argument}' has no value; write {argument} VALUE")
            value = rest.pop(0)
        values[name] = value
    return Layer("arguments", values)
