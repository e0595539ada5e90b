"""Every knob of a run: its type, its bounds, what it does, and where its value came from."""

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from alexmri.errors import UserError, did_you_mean, option

ENVIRONMENT_PREFIX = "ALEXMRI_"
# Environment variables with our prefix that steer the program around a run, not the run.
SWITCHES = {
    "ALEXMRI_CACHE_DIR": "folder for decoded images (default: ~/.cache/alexmri)",
    "ALEXMRI_CACHE_GB": "how much decoded images may take there; those used least recently go"
    " (default: 20, or a tenth of the disk where that is less)",
    "ALEXMRI_SUBJECT_SALT": "secret by which `slices` hashes PatientID (default: one of this user's"
    " own, in ~/.config/alexmri/subject-salt)",
    "ALEXMRI_DEMO_DATA": "1: `train` makes demo data where the data folder is empty",
    "ALEXMRI_STOP_GRACE_SECONDS": "seconds, 0 to 60, that a stopped `train` waits for the"
    " platform to fetch checkpoints (default: 10 where the folder was there before, else 0)",
    "ALEXMRI_MASTER_PORT": "port of the first host where the workers of several hosts meet (7777)",
    "ALEXMRI_WORKERS_FOLDER": "where the workers that `train` starts say that they are ready",
    "ALEXMRI_CUDA_COMPAT": "on, off: use NVIDIA's cuda-compat libraries or not (default: auto)",
    "ALEXMRI_WORKERS": "processes of `serve` that hold the model (default: one per GPU; on CPUs one"
    " per core, at most 4)",
    "ALEXMRI_MAX_BATCH_SIZE": "images `serve` computes at once (default: 64)",
    "ALEXMRI_MAX_BATCH_DELAY_MS": "how long a batch of `serve` that is not full waits (default: 0)",
    "ALEXMRI_TIMEOUT_SECONDS": "the platform's limit for an answer of `serve` (default: 60)",
    "ALEXMRI_LOG_FORMAT": "json: a JSON object per request in the log of `serve` (default: plain)",
    "ALEXMRI_WANDB_SECRET": "ARN of the Secrets Manager secret with the key of Weights & Biases",
    "ALEXMRI_REQUIRE_GPU": "1: fail without a usable GPU; 0: never (default: auto)",
}
# Spellings of the seed project that still work.
OLD_SPELLINGS = {"resize": "image_size"}
# Settings in the model folders of 0.1.0.
RENAMED_IN_0_2 = {"healthy_class": "negative_class"}
AUGMENT_LIMITS = ("shift_limit", "scale_limit", "rotate_limit")
SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", flags=re.ASCII)
PLATFORM_PREFIXES = ("sagemaker_", "_tuning")
# Hyperparameters that estimators of other frameworks add by themselves.
FOREIGN = {
    "model_dir": "SageMaker's TensorFlow estimator adds it: pass it model_dir=False, or use"
    " sagemaker.estimator.Estimator"
}


def _ratios(value: object) -> object:
    if isinstance(value, str):
        return [part for part in value.strip("[]() ").replace("/", ",").split(",") if part]
    return value


def _nothing(value: object) -> object:
    return None if isinstance(value, str) and value.lower() in ("", "none", "null") else value


def _s3_address(value: str | None) -> str | None:
    if value is None:
        return None
    address = value.rstrip("/")
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)+", address):
        raise ValueError("it must look like s3://bucket/prefix, with a prefix for this run alone")
    return address


Ratios = Annotated[tuple[float, float, float], BeforeValidator(_ratios)]
OptionalText = Annotated[str | None, BeforeValidator(_nothing)]
OptionalNumber = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_nothing)]
OptionalShare = Annotated[Annotated[float, Field(gt=0, lt=1)] | None, BeforeValidator(_nothing)]
OptionalS3Address = Annotated[str | None, BeforeValidator(_nothing), AfterValidator(_s3_address)]
OrAutomatic = BeforeValidator(lambda value: _nothing(value) or 0)
OptionalCount = Annotated[Annotated[int, Field(ge=2)] | None, BeforeValidator(_nothing)]


class Settings(BaseModel):
    """The settings of one training run; each is a hyperparameter and a command-line option."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: str = Field(
        "best",
        description="named set of defaults: best, subjects (the default where split_by is subject),"
        " augmented or baseline",
    )
    model_name: Literal["alexnet"] = Field("alexnet", description="the network")
    num_classes: OptionalCount = Field(
        None, description="expected number of class folders; checked, never needed"
    )
    image_size: int = Field(32, ge=32, le=1024, description="side of the square input in pixels")
    channels: Literal[1, 3] = Field(1, description="1 = grayscale, 3 = colour")
    center: Literal["none", "moments"] = Field(
        "none",
        description="place of the head: none = the whole image, stretched to the square; moments ="
        " in the middle and at one size, by the moments of its intensities, with its aspect kept",
    )
    intensity: Literal["none", "median"] = Field(
        "none", description="brightness: none = as it is; median = the same median in every image"
    )

    epochs: int = Field(40, ge=1, le=100_000, description="passes over the training images")
    batch_size: int = Field(128, ge=2, le=65_536, description="images per optimiser step")
    learning_rate: float = Field(0.03, gt=0, le=100, description="peak learning rate")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD, beta 1 of AdamW")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="weight decay of weight matrices")
    schedule: Literal["constant", "cosine", "onecycle"] = Field(
        "onecycle", description="learning rate over the run, after the warm-up"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weight of a class in the loss; balanced = inverse frequency"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout of the fully connected layers")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the averaged weights; 0 = off"
    )

    augment: Literal["none", "shift-scale-rotate"] = Field("none", description="augmentation")
    augment_backend: Literal["batched", "albumentations"] = Field(
        "batched",
        description="what augments: batched = a whole batch at once, on the device of the network",
    )
    augment_probability: float = Field(0.2, ge=0, le=1, description="share of images augmented")
    shift_limit: float = Field(
        0.05, ge=0, le=1, description="largest shift, share of the side, cut to whole pixels"
    )
    scale_limit: float = Field(0.05, ge=0, lt=1, description="largest change of scale")
    rotate_limit: float = Field(15.0, ge=0, le=180, description="largest rotation in degrees")

    early_stopping_patience: int = Field(
        0, ge=0, description="stop after so many epochs without a better model; 0 = off"
    )
    early_stopping_metric: Literal["macro_f1", "accuracy", "loss"] = Field(
        "macro_f1", description="validation metric that chooses the best model"
    )

    split_by: Literal["slice", "subject"] = Field(
        "slice", description="what a split keeps together: a slice, or all slices of a person"
    )
    split_ratios: Ratios = Field(
        (0.70, 0.15, 0.15), description="shares of train, validation and test"
    )
    coverage: OptionalShare = Field(
        None,
        description="share of cases whose prediction set shall hold the true class, such as 0.9;"
        " half of the validation subjects calibrate it; none = no sets",
    )
    group_regex: OptionalText = Field(
        None, description="finds the person in CLASS/NAME: its capture groups, joined"
    )
    groups_file: OptionalText = Field(
        None, description="CSV with the columns path and subject, here or in the data folder"
    )
    negative_class: OptionalText = Field(
        None,
        description="class of people without dementia; none = found by a name like Non*, Normal,"
        " CN, No Impairment, Healthy or Control",
    )
    groups: Literal["auto", "inferred"] = Field(
        "auto",
        description="how people are found: auto = file names, group_regex or groups_file;"
        " inferred = by the pixels, as chains of neighbouring slices",
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="what to do with unreadable images; skip = leave out at most 5 %"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of split, weights, order, augmentation")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic of the network; auto = bf16 where the hardware has it"
    )

    deterministic: bool = Field(
        False, description="on a GPU, only kernels that give the same result in every run; slower"
    )

    workers_per_host: Annotated[int, OrAutomatic] = Field(
        0,
        ge=0,
        le=64,
        description="processes that train together on a host; 0 = one per GPU, one on a CPU",
    )

    checkpoint_every_epochs: int = Field(
        0, ge=0, description="epochs between checkpoints; 0 = by time alone"
    )
    checkpoint_every_seconds: OptionalNumber = Field(
        60, description="seconds between checkpoints, also within an epoch; none = by epochs alone"
    )
    keep_checkpoints: int = Field(2, ge=1, description="how many checkpoints stay on disk")
    resume: Literal["auto", "changed", "never"] = Field(
        "auto",
        description="what to do with checkpoints: auto = go on if settings and data are the same;"
        " changed = go on with other settings; never = remove them and start anew",
    )
    checkpoint_s3: OptionalS3Address = Field(
        None, description="s3://bucket/prefix that keeps the checkpoints too, for another machine"
    )
    export_onnx: bool = Field(
        False, description="also write model.onnx, for runtimes without PyTorch; needs onnx"
    )
    time_budget_seconds: OptionalNumber = Field(
        None, description="start no epoch that would end after so many seconds of training"
    )
    wandb_project: OptionalText = Field(None, description="Weights & Biases project")
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto = online with a key, else offline"
    )

    @model_validator(mode="after")
    def _sensible(self) -> "Settings":
        if min(self.split_ratios) < 0 or 0 in self.split_ratios[:2]:
            raise ValueError(
                f"split_ratios {self.split_ratios} must leave a share for train and validation;"
                " only the share of test may be 0"
            )
        if abs(sum(self.split_ratios) - 1) > 1e-6:
            raise ValueError(f"split_ratios {self.split_ratios} must add up to 1")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs:g}) must be less than epochs ({self.epochs})"
            )
        return self


def cases_needed(coverage: float) -> int:
    """Return with how many subjects a coverage can be promised: ceil(1 / (1 - coverage)) - 1."""
    # Rounded, since 1 / (1 - 0.9) is a little more than 10.
    return math.ceil(round(1 / (1 - coverage), 9)) - 1


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one place, named so that messages can say where a value came from."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings of a run and, for each of them, the name of the layer that decided it."""

    settings: Settings
    sources: Mapping[str, str]


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with alexmri."""
    folder = resources.files("alexmri") / "recipes"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir())


def load_recipe(name: str) -> Layer:
    """Return the recipe `name` as a layer; UserError names the recipes there are."""
    if name not in recipe_names():
        raise UserError(f"there is no recipe '{name}'; the recipes are {', '.join(recipe_names())}")
    text = (resources.files("alexmri") / "recipes" / f"{name}.json").read_text(encoding="utf-8")
    return Layer(f"recipe {name}", json.loads(text))


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """Return the settings found in `ALEXMRI_*` variables; empty ones count as not set."""
    return Layer(
        "environment",
        {
            key.removeprefix(ENVIRONMENT_PREFIX).lower(): value
            for key, value in environment.items()
            if key.startswith(ENVIRONMENT_PREFIX) and key not in SWITCHES and value
        },
    )


def resolve(layers: Sequence[Layer]) -> Resolved:
    """Merge `layers` (the first wins) over the recipe they name and over the defaults.

    Where they name none it is `best`, or `subjects` for a split by subject: what recognises known
    people best is not what says most about new ones.

    Raises:
        UserError: for an unknown key (with the nearest name) and a value that does not fit.
    """
    cleaned = [Layer(layer.name, _known_keys(layer)) for layer in layers]
    given = {key for layer in cleaned for key in layer.values}
    recipe = _first(cleaned, "recipe")
    if recipe is None and _first(cleaned, "split_by") == "subject":
        recipe = "subjects"
        cleaned.append(Layer("split_by subject", {"recipe": recipe}))
    cleaned.append(load_recipe(str(recipe or Settings.model_fields["recipe"].default)))
    values: dict[str, Any] = {}
    sources: dict[str, str] = dict.fromkeys(Settings.model_fields, "default")
    for layer in reversed(cleaned):
        for key, value in layer.values.items():
            values[key] = value
            sources[key] = layer.name
    try:
        resolved = Resolved(Settings.model_validate(values), sources)
    except ValidationError as error:
        raise UserError(_explain(error, sources)) from None
    _refuse_without_effect(resolved, given)
    return resolved


def settings_of_model(stored: Mapping[str, Any]) -> Settings:
    """Return the settings that model.json tells of, perhaps as an earlier version wrote them.

    Settings that this version does not have are left out.

    Raises:
        UserError: a value that does not fit.
    """
    renamed = {RENAMED_IN_0_2.get(key, key): value for key, value in stored.items()}
    values = {key: value for key, value in renamed.items() if key in Settings.model_fields}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, dict.fromkeys(values, "model.json"))) from None


def _refuse_without_effect(resolved: Resolved, given: Set[str]) -> None:
    """Raise UserError for a setting that would do nothing, where somebody has asked for it.

    Not a validator: models of earlier versions name such settings, and must load.
    """
    chosen = resolved.settings

    def refuse(key: str, why: str) -> NoReturn:
        raise UserError(
            f"setting '{key}' is {getattr(chosen, key)!r} {_where(resolved.sources[key])}, which"
            f" does nothing: {why}"
        )

    for key in ("group_regex", "groups_file"):
        if chosen.groups == "inferred" and getattr(chosen, key):
            refuse(
                key, "groups is inferred, so the pixels tell the people; set only one of the two"
            )
    if chosen.group_regex and chosen.groups_file:
        refuse("group_regex", "groups_file names the people already; set only one of the two")
    if chosen.augment == "none":
        for key in ("augment_backend", "augment_probability", *AUGMENT_LIMITS):
            if key in given and getattr(chosen, key):
                refuse(
                    key,
                    f"augment is none; set {option('augment', 'shift-scale-rotate')} too, or"
                    " leave it out",
                )
        return
    if 0 < chosen.shift_limit * chosen.image_size <= 1:
        refuse(
            "shift_limit",
            f"shifts are cut to whole pixels, and the side has {chosen.image_size}; give 0, or"
            f" more than {1 / chosen.image_size:.4g} (1/image_size)",
        )
    if not chosen.augment_probability and given & {"augment", "augment_probability"}:
        refuse(
            "augment_probability",
            f"no image is augmented; give more, or set {option('augment', 'none')}",
        )
    if not any(getattr(chosen, key) for key in AUGMENT_LIMITS):
        for key in ("augment", *AUGMENT_LIMITS):
            if key in given:
                refuse(
                    key,
                    "all of the limits are 0; give one of them, or set"
                    f" {option('augment', 'none')}",
                )


def _first(layers: Sequence[Layer], key: str) -> Any:
    return next((layer.values[key] for layer in layers if key in layer.values), None)


def _known_keys(layer: Layer) -> dict[str, Any]:
    known: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for original, value in layer.values.items():
        key = OLD_SPELLINGS.get(original.replace("-", "_"), original.replace("-", "_"))
        if key.startswith(PLATFORM_PREFIXES):
            continue
        if key not in Settings.model_fields:
            foreign = FOREIGN.get(key)
            hint = f"; {foreign}" if foreign else did_you_mean(key, Settings.model_fields)
            raise UserError(
                f"unknown setting '{original}' {_where(layer.name)}{hint}"
                " (`alexmri config` lists all settings)"
            )
        if key in known:
            raise UserError(
                f"{layer.name} gives '{key}' twice, as '{spelled[key]}' and as '{original}'; keep"
                " one"
            )
        known[key] = _decode(key, value)
        spelled[key] = original
    return known


def _decode(key: str, value: Any) -> Any:
    """Undo one layer of JSON around a text, as some SageMaker clients send every value.

    Numbers may be written as tuning jobs write them, 16.0 or 1e3, also for whole numbers.
    """
    kind = Settings.model_fields[key].annotation
    if isinstance(value, bool) and kind is not bool:
        return str(value)  # which is no number
    if not isinstance(value, str):
        return value
    text = value.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            text = json.loads(text).strip()
        except json.JSONDecodeError:
            return value
    if kind is int and SCIENTIFIC.fullmatch(text):
        return float(text)
    choices = {str(choice): choice for choice in get_args(kind)}
    return choices.get(text.removesuffix(".0"), text)


def _where(source: str) -> str:
    places = {"command line": "on the command line", "environment": "in the environment"}
    return places.get(source, f"in {source}")


# What pydantic says in words for programmers.
WISHES = {
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_parsing": "it must be a number",
    "bool_parsing": "it must be true or false",
}


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Turn the first of pydantic's findings into one sentence with the value's origin."""
    finding = error.errors()[0]
    message = finding["msg"].removeprefix("Value error, ")
    if not finding["loc"]:
        return message
    key = str(finding["loc"][0])
    wish = re.sub(r"^input should be", "it must be", message[0].lower() + message[1:])
    wish = WISHES.get(finding["type"], wish)
    if wish == WISHES["int_parsing"] and "." in str(finding["input"]):
        wish += " (in a tuning job, give it an Integer range, not a Continuous one)"
    return (
        f"setting '{key}' is {finding['input']!r} {_where(sources[key])}: {wish};"
        f" it means: {Settings.model_fields[key].description}"
    )
