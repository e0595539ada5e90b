"""Settings: types, bounds, precedence, and messages that say what to change."""

import json

import pytest

from alexmri.errors import UserError
from alexmri.settings import (
    Layer,
    Settings,
    environment_layer,
    recipe_names,
    resolve,
    settings_of_model,
)


def settings_of(**values: object) -> Settings:
    return resolve([Layer("command line", values)]).settings


def test_precedence_and_sources() -> None:
    resolved = resolve(
        [
            Layer("command line", {"epochs": 3}),
            environment_layer({"ALEXMRI_EPOCHS": "4", "ALEXMRI_SEED": "5", "PATH": "x"}),
            Layer("hyperparameters.json", {"seed": "6", "batch_size": "32", "recipe": "baseline"}),
            Layer("mine.json", {"batch_size": 64, "momentum": 0.5}),
        ]
    )
    chosen = resolved.settings
    assert (chosen.epochs, chosen.seed, chosen.batch_size, chosen.momentum) == (3, 5, 32, 0.5)
    assert chosen.learning_rate == 1e-4
    assert resolved.sources["epochs"] == "command line"
    assert resolved.sources["seed"] == "environment"
    assert resolved.sources["batch_size"] == "hyperparameters.json"
    assert resolved.sources["momentum"] == "mine.json"
    assert resolved.sources["learning_rate"] == "recipe baseline"
    assert resolved.sources["split_by"] == "default"


def test_the_recipes_are_those_promised() -> None:
    assert recipe_names() == ["augmented", "baseline", "best", "subjects"]
    baseline, augmented = settings_of(recipe="baseline"), settings_of(recipe="augmented")
    seed_project = {"optimizer": "sgd", "learning_rate": 1e-4, "momentum": 0.9}
    seed_project |= {"weight_decay": 1e-4, "batch_size": 128, "epochs": 100, "augment": "none"}
    assert baseline.model_dump(include=set(seed_project)) == seed_project
    changed = {k for k, v in augmented.model_dump().items() if baseline.model_dump()[k] != v}
    assert changed == {"recipe", "augment"}
    limits = (augmented.shift_limit, augmented.scale_limit, augmented.rotate_limit)
    assert limits == (0.05, 0.05, 15)
    assert augmented.augment_probability == 0.2
    for published in (baseline, augmented):
        assert (published.center, published.intensity) == ("none", "none")
    for ours in (settings_of(), settings_of(recipe="subjects")):
        assert (ours.center, ours.intensity) == ("moments", "median")


def test_the_default_recipe_follows_the_split() -> None:
    assert settings_of().recipe == "best"
    by_subject = settings_of(split_by="subject")
    assert (by_subject.recipe, by_subject.epochs) == ("subjects", 3)
    named = settings_of(split_by="subject", recipe="best")
    assert (named.recipe, named.epochs) == ("best", settings_of().epochs)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", "3", 3),
        ("epochs", '"3"', 3),
        ("epochs", "3.0", 3),
        ("learning_rate", "1e-3", 0.001),
        ("epochs", "1e1", 10),
        ("channels", "3", 3),
        ("channels", '"3"', 3),
        ("channels", "3.0", 3),
        ("split_ratios", "0.8,0.1,0.1", (0.8, 0.1, 0.1)),
        ("split_ratios", "[0.8, 0.1, 0.1]", (0.8, 0.1, 0.1)),
        ("group_regex", '"(a)"', "(a)"),
        ("group_regex", "null", None),
        ("time_budget_seconds", "", None),
        ("batch-size", "16", 16),
        ("checkpoint_s3", "s3://my-bucket/runs/one/", "s3://my-bucket/runs/one"),
        ("checkpoint_s3", "none", None),
    ],
)
def test_texts_become_values(key: str, value: str, expected: object) -> None:
    assert getattr(settings_of(**{key: value}), key.replace("-", "_")) == expected


def test_old_spellings_still_work_and_platform_keys_are_ignored() -> None:
    chosen = settings_of(
        resize="64", model_name="alexnet", num_classes="4", sagemaker_region="x", _tuning_y="z"
    )
    assert (chosen.image_size, chosen.num_classes) == (64, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch' on the command line; did you mean 'epochs'"),
        ({"zzz": 3}, r"unknown setting 'zzz' on the command line \("),
        (
            {"epochs": "0"},
            "setting 'epochs' is '0' on the command line: .*greater than or equal to 1",
        ),
        ({"epochs": "two"}, "'epochs' is 'two' on the command line: it must be a whole number;"),
        ({"epochs": "3.5"}, "'epochs' is '3.5' .*Integer range, not a Continuous"),
        ({"epochs": 3.5}, "'epochs' is 3.5 .*Integer range, not a Continuous"),
        ({"epochs": "1.65e1"}, "'epochs' is 16.5 .*Integer range, not a Continuous"),
        ({"epochs": True}, "'epochs' is 'True'"),
        ({"epochs": "9" * 5000}, "'epochs' is '999"),
        ({"channels": "²"}, "'channels' is '²'"),
        (
            {"image_size": 32, "image-size": 64},
            "gives 'image_size' twice, as 'image_size' and as 'image-",
        ),
        (
            {"image_size": 32, "resize": 64},
            "twice, as 'image_size' and as 'resize'; keep one",
        ),
        ({"learning_rate": "nan"}, "'learning_rate' is 'nan'"),
        ({"optimizer": "adam"}, "'optimizer' is 'adam' .*'sgd' or 'adamw'"),
        ({"image_size": "31"}, "'image_size' is '31' .*greater than or equal to 32"),
        ({"recipe": "worst"}, "no recipe 'worst'; the recipes are augmented, baseline, best"),
        ({"split_ratios": "0.5,0.5,0.5"}, "must add up to 1"),
        ({"split_ratios": "1,0,0"}, "validation"),
        ({"epochs": 3, "warmup_epochs": 3}, "must be less than epochs"),
        ({"model_name": "resnet"}, "'model_name' is 'resnet'"),
        ({"checkpoint_s3": "s3://bucket"}, "'s3://bucket' .*: it must look like s3://bucket/pre"),
        ({"checkpoint_s3": "s3://Big/x"}, "it must look like s3://bucket/prefix"),
        ({"checkpoint_s3": "s3://bucket/a//b"}, "with a prefix for this run alone"),
    ],
)
def test_mistakes_end_in_one_sentence(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        settings_of(**values)
    assert "\n" not in str(refused.value)


ON = {"augment": "shift-scale-rotate"}
NO_LIMITS = {"shift_limit": 0, "scale_limit": 0, "rotate_limit": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"shift_limit": 0.03},
            r"'shift_limit' is 0\.03 on the command line, which does nothing: shifts are cut to"
            r" whole pixels, and the side has 32; give 0, or more than 0\.03125 \(1/image_size\)",
        ),
        ({"shift_limit": 0.004, "image_size": 224}, r"224; give 0, or more than 0\.004464"),
        ({"augment": "none", "shift_limit": 0.1}, "'shift_limit' is 0.1 .* augment is none; set"),
        ({"recipe": "baseline", "rotate_limit": "5"}, "'rotate_limit' is 5.0 .* augment is none"),
        ({"augment": "none", "scale_limit": 0.1}, "'scale_limit' is 0.1 .* augment is none"),
        (
            {"recipe": "baseline", "augment_probability": 0.5},
            "'augment_probability' is 0.5 .* none",
        ),
        ({"augment": "none", "augment_backend": "albumentations"}, "'augment_backend' .* is none"),
        ({"augment_probability": 0}, "'augment_probability' is 0.0 .*no image is augmented"),
        ({**ON, "augment_probability": 0}, "'augment_probability' is 0.0 .*or set augment to none"),
        ({**ON, **NO_LIMITS}, "'augment' is 'shift-scale-rotate' .* all of the limits are 0"),
        ({"scale_limit": 0, "rotate_limit": 0}, "'scale_limit' is 0.0 .* all of the limits are 0"),
        (
            {"groups": "inferred", "group_regex": "(x)"},
            "'group_regex' .* the pixels tell the people",
        ),
        ({"groups": "inferred", "groups_file": "x.csv"}, "'groups_file' .* the pixels tell"),
        ({"group_regex": "(x)", "groups_file": "x.csv"}, "'group_regex' .* groups_file names"),
    ],
)
def test_a_setting_without_effect_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        settings_of(**values)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="in the environment, which does nothing"):
        resolve([environment_layer({f"ALEXMRI_{k.upper()}": str(v) for k, v in values.items()})])


@pytest.mark.parametrize(
    "values",
    [
        {"augment": "none"},
        {"recipe": "baseline", **NO_LIMITS, "augment_probability": 0},
        {"shift_limit": 0.03, "image_size": 64},
        {"shift_limit": 0},
        *({"recipe": name} for name in recipe_names()),
    ],
)
def test_what_has_an_effect_or_asks_for_none_is_taken(values: dict[str, object]) -> None:
    assert settings_of(**values)


def test_models_of_earlier_versions_name_a_shift_that_moves_nothing() -> None:
    values = settings_of().model_dump(mode="json") | {"shift_limit": 0.03}
    assert Settings.model_validate(values).shift_limit == 0.03


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(UserError, match="unknown setting 'epocs' in the environment"):
        resolve([environment_layer({"ALEXMRI_EPOCS": "3"})])


def test_switches_and_empty_variables_are_no_settings() -> None:
    layer = environment_layer({"ALEXMRI_CACHE_DIR": "x", "ALEXMRI_SEED": ""})
    assert layer.values == {}


def test_every_setting_is_described_and_survives_json() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    values = json.loads(json.dumps(settings_of().model_dump(mode="json")))
    assert Settings.model_validate(values) == settings_of()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("model_dir", "SageMaker's TensorFlow estimator adds it: pass it model_dir=False"),
        ("epocs", "did you mean 'epochs'?"),
        ("num_epochs", "did you mean 'epochs'?"),
        ("batchsize", "did you mean 'batch_size'?"),
        ("learning_rte", "did you mean 'learning_rate'?"),
        ("early_stopping", "did you mean 'early_stopping_"),
        ("optim", "did you mean 'optimizer'?"),
    ],
)
def test_an_unknown_setting_is_explained(key: str, hint: str) -> None:
    with pytest.raises(UserError) as raised:
        settings_of(**{key: "1"})
    assert hint in str(raised.value)


@pytest.mark.parametrize("key", ["model_dir", "output_dir", "data_dir", "region", "job_name"])
def test_a_setting_of_others_is_not_taken_for_a_slip(key: str) -> None:
    with pytest.raises(UserError) as raised:
        settings_of(**{key: "1"})
    assert "did you mean" not in str(raised.value)
    assert f"unknown setting '{key}'" in str(raised.value)


def test_the_settings_of_a_model_of_0_1_0_are_read() -> None:
    stored = {"recipe": "people", "healthy_class": "CN", "gone": 1, "shift_limit": 0.03, "seed": 4}
    settings = settings_of_model(stored)
    assert (settings.negative_class, settings.seed, settings.shift_limit) == ("CN", 4, 0.03)
    with pytest.raises(UserError, match="setting 'seed' is 'x' in model.json"):
        settings_of_model({"seed": "x"})
