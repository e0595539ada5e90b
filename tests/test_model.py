"""The network at every size, its table of layers, and the model directory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from alexmri.data.pixels import Pixels
from alexmri.errors import UserError
from alexmri.files import sha256_of, sha256_of_json, write_json
from alexmri.model.alexnet import AlexNet, AverageDown, build, summarise
from alexmri.model.bundle import load_bundle
from alexmri.model.forward import Compute, choose_compute, predict_logits, to_input
from alexmri.model.ood import OutOfDistribution
from alexmri.model.predictor import Predictor, log_softmax, ranked, softmax, subject_mean
from alexmri.training.ood_fit import fit_ood

from . import bundles

pytestmark = pytest.mark.slow

CPU = Compute(torch.device("cpu"), "fp32")
CLASSES = ("Mild", "Moderate", "Non")


def network_of(image_size: int = 32, channels: int = 1, seed: int = 0) -> AlexNet:
    return build(classes=3, image_size=image_size, channels=channels, dropout=0.5, seed=seed)


def noise(count: int, image_size: int = 32, channels: int = 1) -> Pixels:
    shape = (count, channels, image_size, image_size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("image_size", [32, 33, 47, 64, 95, 96, 112, 224, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_from_32_up_works(image_size: int, channels: int) -> None:
    with torch.device("meta"):
        network = AlexNet(4, image_size, channels, 0.5).eval()
        assert network(torch.empty(2, channels, image_size, image_size)).shape == (2, 4)


@pytest.mark.parametrize("found", [6, 7, 8, 11, 13])
def test_larger_maps_are_averaged_as_torch_does_it(found: int) -> None:
    maps_NCSS = torch.rand(2, 3, found, found, requires_grad=True)
    ours, theirs = AverageDown(6)(maps_NCSS), nn.functional.adaptive_avg_pool2d(maps_NCSS, 6)
    torch.testing.assert_close(ours, theirs)
    weights = torch.rand_like(ours)
    gradients = [torch.autograd.grad((m * weights).sum(), maps_NCSS)[0] for m in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("image_size", [32, 224, 512])
def test_no_layer_has_a_gradient_that_is_not_deterministic_on_a_gpu(image_size: int) -> None:
    """`--deterministic` ended with an error on every GPU: its average pooling was refused."""
    kinds = {type(module) for module in network_of(image_size).modules()}
    assert not {kind for kind in kinds if "Adaptive" in kind.__name__}


def test_the_default_network_is_the_one_described() -> None:
    layers = summarise(classes=4, image_size=32, channels=1, dropout=0.5)
    assert sum(layer.parameters for layer in layers) == 24_721_444
    convolutions = [layer for layer in layers if layer.kind == "Conv2d"]
    assert [layer.output[0] for layer in convolutions] == [96, 256, 384, 384, 256]
    assert [layer.output[1] for layer in convolutions] == [16, 8, 4, 4, 4]
    assert convolutions[0].multiply_adds == 11 * 11 * 96 * 16 * 16


def test_at_224_pixels_it_is_the_classic_network() -> None:
    layers = summarise(classes=4, image_size=224, channels=3, dropout=0.5)
    convolutions = [layer for layer in layers if layer.kind == "Conv2d"]
    assert [layer.output[1] for layer in convolutions] == [55, 27, 13, 13, 13]
    assert next(layer for layer in layers if layer.kind == "Flatten").output == (256 * 6 * 6,)


@pytest.mark.slow
def test_weights_are_a_function_of_the_seed_and_leave_no_trace() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = network_of(), network_of(), network_of(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, weight), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(weight, same)
        # Batch norm starts at one and zero whatever the seed.
        assert weight.unique().numel() == 1 or not torch.equal(weight, different), name


def test_normalisation_maps_black_and_white_to_plus_minus_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert to_input(pixels).flatten().tolist() == [-1.0, 1.0]


def test_batches_do_not_change_an_answer() -> None:
    network, pixels = network_of(), noise(300)
    together = predict_logits(network, pixels, CPU)
    assert np.allclose(together[257:259], predict_logits(network, pixels[257:259], CPU), atol=1e-4)
    assert network.training


def test_bf16_agrees_with_fp32_roughly() -> None:
    network, pixels = network_of().eval(), noise(8)
    reduced = predict_logits(network, pixels, Compute(torch.device("cpu"), "bf16"))
    exact = predict_logits(network, pixels, CPU)
    assert not np.array_equal(reduced, exact)
    assert np.allclose(reduced, exact, atol=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is refused on a CPU only")
def test_fp16_on_a_cpu_is_refused() -> None:
    assert choose_compute("fp32").precision == "fp32"
    assert choose_compute("auto").precision in ("bf16", "fp32")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        choose_compute("fp16")


def save(folder: Path, network: AlexNet) -> Path:
    return bundles.save(folder, network, CLASSES, temperature=2.0, facts={"settings": {}})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bundle"), network_of().eval())


def test_a_model_read_back_gives_the_same_answers(bundle: Path) -> None:
    loaded, pixels = load_bundle(bundle), noise(5)
    expected = predict_logits(network_of().eval(), pixels, CPU)
    assert np.array_equal(predict_logits(loaded.network, pixels, CPU), expected)
    assert loaded.classes == CLASSES
    probabilities = Predictor(loaded).probabilities(pixels)
    assert np.allclose(probabilities, softmax(expected, 2.0))
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_the_directory_holds_what_is_promised(bundle: Path) -> None:
    names = {"model.safetensors", "model.json", "golden.npz", "MODEL_CARD.md"}
    assert {path.name for path in bundle.iterdir()} == names
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in bundle.iterdir())
    document = json.loads((bundle / "model.json").read_text())
    assert document["schema"] == "alexmri.model/1"
    assert document["preprocessing"]["mean"] == document["preprocessing"]["std"] == 0.5
    assert "not for diagnosis" in document["intended_use"]


def test_equal_networks_give_equal_bytes(bundle: Path, tmp_path: Path) -> None:
    again = save(tmp_path / "again", network_of().eval())
    for path in bundle.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def copied(bundle: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "golden.npz"])
def test_a_flipped_bit_is_noticed(bundle: Path, tmp_path: Path, name: str) -> None:
    folder = copied(bundle, tmp_path / "copy")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        load_bundle(folder)


def change(folder: Path, **values: object) -> None:
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**document, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": "alexmri.model/9"}, "has schema alexmri.model/9; this version reads"),
        ({"preprocessing": {"name": "other"}}, "trained with preprocessing other"),
        ({"files": {"weights.bin": "00"}}, "is incomplete: weights.bin is missing"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    bundle: Path, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    folder = copied(bundle, tmp_path / "copy")
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        load_bundle(folder)


def test_weights_of_another_network_are_refused(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "copy")
    architecture = json.loads((folder / "model.json").read_text())["architecture"]
    change(folder, architecture={**architecture, "classes": 7})
    with pytest.raises(UserError, match=r"model\.safetensors does not fit"):
        load_bundle(folder)


def test_weights_that_answer_otherwise_are_refused(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "copy")
    other = save(tmp_path / "other", network_of(seed=1).eval())
    files = json.loads((other / "model.json").read_text())["files"]
    golden = json.loads((folder / "model.json").read_text())["files"]["golden.npz"]
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    change(folder, files={**files, "golden.npz": golden})
    with pytest.raises(UserError, match="does not reproduce its stored example"):
        load_bundle(folder)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a model: it has no model\.json"):
        load_bundle(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json is not valid JSON"):
        load_bundle(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(UserError, match="must hold one JSON object, not list"):
        load_bundle(tmp_path)


# --- a folder that contradicts itself


@pytest.fixture(scope="module")
def with_ood(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with a file about the training data."""
    folder = tmp_path_factory.mktemp("with-ood")
    for path in bundle.iterdir():
        (folder / path.name).hardlink_to(path)
    features_NF = np.random.default_rng(0).random((40, 736), dtype=np.float32)
    fit_ood(features_NF, features_NF[:20]).save(folder / "ood.safetensors")
    return folder


@pytest.fixture
def folder(with_ood: Path, tmp_path: Path) -> Path:
    """A model to spoil; its weights of a hundred megabytes are a link."""
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "model.safetensors").hardlink_to(with_ood / "model.safetensors")
    for name in ("model.json", "golden.npz", "ood.safetensors"):
        shutil.copy(with_ood / name, folder)
    seal(folder)
    return folder


def seal(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda content: None) -> None:
    """Edit model.json and give all checksums the values that belong to what is there."""
    content = json.loads((folder / "model.json").read_text())
    content["files"] = {
        path.name: checksum(path)
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".npz")
    }
    edit(content)
    content.pop("checksum", None)
    write_json(folder / "model.json", content | {"checksum": sha256_of_json(content)})


def checksum(path: Path) -> str:
    version = (path.stat().st_ino, path.stat().st_mtime_ns)
    if version not in CHECKSUMS:
        CHECKSUMS[version] = sha256_of(path)
    return CHECKSUMS[version]


CHECKSUMS: dict[tuple[int, int], str] = {}


def put(*path: str, value: object) -> Callable[[dict[str, Any]], object]:
    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("classes", value=["A", "B"]), "names 2 classes, and the network answers for 3"),
        (put("classes", value=["A", "B", "A"]), "names the class 'A' twice"),
        (put("classes", value=["A", "B", 3]), "has 3 as 'classes.2'"),
        (put("classes", value="ABC"), "has 'ABC' as 'classes'"),
        (put("classes", value=["A", "B", ""]), "has '' as 'classes.2'"),
        (put("architecture", "classes", value=7), "model.safetensors does not fit: classifier.7"),
        (put("architecture", "classes", value=-1), "has -1 as 'architecture.classes'"),
        (put("architecture", value=[]), "has [] as 'architecture'"),
        (put("architecture", "name", value="vgg"), "has 'vgg' as 'architecture.name'"),
        (put("architecture", "dropout", value=2), "has 2 as 'architecture.dropout'"),
        (put("architecture", "image_size", value=64), "does not fit"),
        (put("temperature", value=-1), "has -1 as 'temperature'"),
        (put("temperature", value=0), "has 0 as 'temperature'"),
        (put("temperature", value="1.5"), "has '1.5' as 'temperature'"),
        (put("temperature", value=None), "has None as 'temperature'"),
        (put("preprocessing", "image_size", value=0), "has 0 as 'preprocessing.image_size'"),
        (put("preprocessing", "image_size", value=48), "image_size is 32 in 'architecture' and 48"),
        (put("preprocessing", "channels", value=2), "has 2 as 'preprocessing.channels'"),
        (put("preprocessing", "channels", value=3), "channels is 1 in 'architecture' and 3"),
        (put("preprocessing", "mean", value=0.45), "was trained with mean 0.45 of the pixels"),
        (put("preprocessing", "std", value=0.2), "was trained with std 0.2 of the pixels"),
        (put("preprocessing", value=None), "has None as 'preprocessing'"),
        (put("files", value=[]), "has [] as 'files'"),
        (put("settings", value=[]), "has [] as 'settings'"),
        (put("metrics", value="good"), "has 'good' as 'metrics'"),
        (put("data", value={"counts": []}), "has [] as 'data.counts'"),
        (put("files", value={}), "does not list model.safetensors among its files"),
        (lambda c: c["files"].pop("model.safetensors"), "does not list model.safetensors"),
        (lambda c: c["files"].pop("golden.npz"), "does not list golden.npz"),
        (lambda c: c["files"].pop("ood.safetensors"), "does not list ood.safetensors"),
        (put("files", "../copy/golden.npz", value="00"), "which is not in its folder"),
        (put("files", "golden.npz", value=5), "as 'files.golden.npz'"),
        (lambda c: c.pop("temperature"), "has no 'temperature'"),
        (lambda c: c.pop("schema"), "has schema None"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(
    folder: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    seal(folder, edit)
    with pytest.raises(UserError) as raised:
        load_bundle(folder)
    assert words in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_json_that_was_altered_is_refused(folder: Path) -> None:
    change(folder, temperature=1.0)
    with pytest.raises(UserError, match=r"model\.json is damaged: its checksum does not match"):
        load_bundle(folder)
    content = json.loads((folder / "model.json").read_text())
    del content["checksum"]  # as version 0.1.0 wrote it
    (folder / "model.json").write_text(json.dumps(content))
    assert load_bundle(folder).temperature == 1


@pytest.mark.parametrize("text", ["[" * 200_000, "null", '{"temperature": NaN}', "", "\0", '"x"'])
def test_a_model_json_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json"):
        load_bundle(folder)


def in_weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors")

    return spoil


def in_ood(**values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "ood.safetensors"
        arrays = load_file(path, device="cpu")
        for name, edit in values.items():
            arrays[name] = edit(arrays[name]).contiguous()
        save_file(arrays, path)

    return spoil


def in_golden(**values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with np.load(folder / "golden.npz") as golden:
            arrays = dict(golden)
        np.savez(
            folder / "golden.npz", **{k: values.get(k, lambda x: x)(arrays[k]) for k in arrays}
        )

    return spoil


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            in_weights(lambda w: w.update({k: v.half() for k, v in w.items()})),
            "is float16 [96, 1, 11, 11], and the network of model.json has float32 [96, 1, 11, 11]",
        ),
        (in_weights(lambda w: w["features.0.0.weight"][0].fill_(torch.nan)), "not finite numbers"),
        (in_weights(lambda w: w["classifier.7.bias"].fill_(torch.inf)), "not finite numbers"),
        (in_weights(lambda w: w["features.0.1.running_var"].neg_()), "negative variances"),
        (in_weights(lambda w: w.pop("classifier.7.bias")), "it lacks 'classifier.7.bias'"),
        (
            in_weights(lambda w: w.update(more=torch.ones(1))),
            "has, and the network has not, 'more'",
        ),
        (in_ood(mean_F=lambda a: a * torch.nan), "mean_F holds values that are not finite numbers"),
        (in_ood(mean_F=lambda a: a.double()), "mean_F is float64 [736], not float32 [736]"),
        (in_ood(mean_F=lambda a: a[:40], directions_DF=lambda a: a[:, :40]), "by 40 numbers"),
        (in_ood(directions_DF=lambda a: a.T), "directions_DF is float32"),
        (in_ood(variance_D=lambda a: -a), "variances that are not positive"),
        (in_ood(rest=lambda a: a * 0), "variances that are not positive"),
        (in_ood(distances_V=lambda a: a[:0]), "distances_V is empty"),
        (in_ood(distances_V=lambda a: a.flip(0)), "distances_V is not sorted"),
        (in_golden(pixels=lambda a: a[:0]), "golden.npz does not fit"),
        (in_golden(pixels=lambda a: a.astype(float)), "golden.npz does not fit"),
        (in_golden(logits=lambda a: a[:, :2]), "golden.npz does not fit"),
        (in_golden(logits=lambda a: a * np.nan), "does not reproduce its stored example"),
        (lambda f: (f / "golden.npz").write_bytes(b"PK"), "golden.npz cannot be read"),
        (lambda f: replace(f / "model.safetensors", b"x" * 99), "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused_though_their_checksums_do(
    folder: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(folder)
    seal(folder)
    with pytest.raises(UserError) as raised:
        load_bundle(folder)
    assert words in str(raised.value)
    assert str(folder) in str(raised.value)


def test_weights_beside_the_model_must_be_listed(folder: Path) -> None:
    (folder / "other.safetensors").hardlink_to(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"does not list other\.safetensors among its files"):
        load_bundle(folder)


def test_a_file_about_the_training_data_comes_back(folder: Path) -> None:
    loaded = load_bundle(folder).ood
    assert loaded
    stored = OutOfDistribution.load(folder / "ood.safetensors")
    assert np.array_equal(loaded.distances_V, stored.distances_V)


def as_version_0_1_0_wrote_it(folder: Path) -> None:
    (folder / "ood.safetensors").rename(folder / "unlike.safetensors")
    seal(folder)
    content = json.loads((folder / "model.json").read_text())
    del content["checksum"]
    write_json(folder / "model.json", content)


def test_a_model_of_version_0_1_0_loads_and_scores_images(folder: Path) -> None:
    images_NCHW = noise(5)
    now = Predictor.load(folder).predict(images_NCHW).ood_percentile_N
    as_version_0_1_0_wrote_it(folder)
    then = Predictor.load(folder).predict(images_NCHW).ood_percentile_N
    assert now is not None
    assert then is not None
    assert np.array_equal(now, then)
    (folder / "unlike.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"unlike\.safetensors is damaged"):
        load_bundle(folder)


def test_a_new_model_replaces_one_of_version_0_1_0(folder: Path) -> None:
    as_version_0_1_0_wrote_it(folder)
    (folder / "model.safetensors").unlink()  # a link to the weights of the other tests
    bundles.save(folder, network_of(), CLASSES)
    assert not (folder / "unlike.safetensors").exists()
    assert load_bundle(folder).ood is None


def test_probabilities_survive_large_logits() -> None:
    assert softmax([[1e4, 0.0]]).tolist() == [[1.0, 0.0]]
    assert np.isfinite(log_softmax([[1e4, 0.0]])).all()


def test_a_person_is_the_mean_over_slices_and_answers_are_ranked() -> None:
    mean = subject_mean(np.array([[0.2, 0.8, 0.0], [0.6, 0.2, 0.2]]))
    assert list(ranked(CLASSES, mean)) == ["Moderate", "Mild", "Non"]
