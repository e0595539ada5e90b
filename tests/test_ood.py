"""How unusual an image is: the fit on training slices, the score, and the file that keeps it."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from alexmri.data.pixels import Pixels, decode
from alexmri.errors import UserError
from alexmri.model.alexnet import AlexNet
from alexmri.model.bundle import load_bundle
from alexmri.model.ood import OutOfDistribution
from alexmri.model.predictor import InferenceNetwork, Predictor
from alexmri.training.ood_fit import fit_ood, sample_rows

from .test_predictor import FP32, network_of, noise, save

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo_parts(demo: Path) -> tuple[Pixels, Pixels, Pixels]:
    return parts(sorted(demo.rglob("*.jpg")))


def parts(files: list[Path]) -> tuple[Pixels, Pixels, Pixels]:
    """Return a third each for training, for validation and held out."""
    pixels = np.stack([decode(file, image_size=32, channels=1) for file in files])
    turn = np.random.default_rng(1).permutation(len(pixels)) % 3
    return pixels[turn == 0], pixels[turn == 1], pixels[turn == 2]


def photos(count: int) -> Pixels:
    """Pictures with the spectrum of natural scenes, amplitude falling as 1 / frequency."""
    generator = np.random.default_rng(3)
    frequency = np.fft.fftfreq(32)
    radius = np.hypot(*np.meshgrid(frequency, frequency))
    radius[0, 0] = 1
    waves = generator.normal(size=(count, 32, 32)) + 1j * generator.normal(size=(count, 32, 32))
    scenes = np.fft.ifft2(waves / radius).real
    low = scenes.min(axis=(1, 2), keepdims=True)
    spread = np.ptp(scenes, axis=(1, 2), keepdims=True)
    return np.rint((scenes - low) / spread * 255).astype(np.uint8)[:, None]


def fitted(network: AlexNet, train: Pixels, validation: Pixels) -> OutOfDistribution:
    looking = InferenceNetwork(network, FP32)
    return fit_ood(looking.run(train)[1], looking.run(validation)[1])


def check_scores(train: Pixels, validation: Pixels, held_out: Pixels, folder: Path) -> None:
    network = network_of()
    predictor = Predictor.load(save(folder, network, fitted(network, train, validation)))

    def score(pixels: Pixels) -> np.ndarray:
        ood = predictor.predict(pixels).ood_percentile_N
        assert ood is not None
        assert ood.min() >= 0
        assert ood.max() <= 1
        return ood

    for foreign in (noise(20), photos(20), 255 - held_out[:20], np.zeros_like(held_out[:1])):
        assert score(foreign).min() > 0.99
    ordinary = score(held_out)
    assert 0.2 < np.median(ordinary) < 0.8
    assert (ordinary > 0.99).mean() < 0.1


def test_foreign_pictures_score_high_and_slices_do_not(
    demo_parts: tuple[Pixels, Pixels, Pixels], tmp_path: Path
) -> None:
    check_scores(*demo_parts, tmp_path)


def test_foreign_pictures_score_high_and_real_slices_do_not(
    real_slices: Path, tmp_path: Path
) -> None:
    check_scores(*parts(sorted(real_slices.rglob("*.jpg"))[::8]), tmp_path)


def test_the_score_is_the_share_of_validation_slices_that_are_less_unusual() -> None:
    generator = np.random.default_rng(0)
    train = generator.normal(size=(500, 40)).astype(np.float32)
    validation = generator.normal(size=(100, 40)).astype(np.float32)
    ood = fit_ood(train, validation)
    ranks = np.sort(ood.score(validation))
    np.testing.assert_allclose(ranks, np.arange(100) / 100)
    assert ood.score(np.full((1, 40), 50, dtype=np.float32)).tolist() == [1.0]
    assert ood.score(train.mean(axis=0, keepdims=True)).tolist() == [0.0]


@pytest.mark.parametrize("count", [100, 500])
def test_the_distance_is_scikit_learns_likelihood_of_probabilistic_pca(count: int) -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(60, 60))
    train = (generator.normal(size=(count, 60)) @ mixing).astype(np.float32)
    others = (generator.normal(size=(50, 60)) @ mixing).astype(np.float32)
    pca = PCA(32, svd_solver="covariance_eigh").fit(train.astype(np.float64))
    likelihoods = -2 * pca.score_samples(others.astype(np.float64))
    distances = fit_ood(train, others).distances(others)
    # They differ by a constant, the logarithm of the determinant.
    np.testing.assert_allclose(np.diff(distances), np.diff(likelihoods), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("count", [1, 2])
def test_one_slice_or_equal_ones_are_enough_to_fit(count: int) -> None:
    same = np.full((count, 40), 0.3, dtype=np.float32)
    ood = fit_ood(same, same[:1])
    assert ood.score(same).tolist() == [0.0] * count
    assert ood.score(same + 1).tolist() == [1.0] * count
    assert ood.directions_DF.shape == (1, 40)


def test_at_most_a_thousand_slices_are_looked_at_evenly() -> None:
    assert sample_rows(3).tolist() == [0, 1, 2]
    rows = sample_rows(3872)
    assert (len(rows), rows[0], rows[-1]) == (1000, 0, 3871)
    assert set(np.diff(rows)) == {3, 4}


def test_equal_slices_give_equal_bytes_and_few(
    demo_parts: tuple[Pixels, Pixels, Pixels], tmp_path: Path
) -> None:
    train, validation, _ = demo_parts
    for name in ("one", "two"):
        network = network_of()
        save(tmp_path / name, network, fitted(network, train, validation))
    one, two = (tmp_path / name / "ood.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size <= 200_000
    assert "ood.safetensors" in json.loads((tmp_path / "one" / "model.json").read_text())["files"]


def test_a_model_without_the_measure_answers_without_it(tmp_path: Path) -> None:
    predictor = Predictor.load(save(tmp_path, network_of()))
    prediction = predictor.predict(noise(5))
    assert prediction.ood_percentile_N is None
    np.testing.assert_allclose(
        prediction.probabilities_NK, predictor.probabilities(noise(5)), atol=0.02
    )
    np.testing.assert_allclose(prediction.probabilities_NK.sum(axis=1), 1)


def test_a_damaged_measure_is_noticed(
    demo_parts: tuple[Pixels, Pixels, Pixels], tmp_path: Path
) -> None:
    network = network_of()
    save(tmp_path, network, fitted(network, *demo_parts[:2]))
    (tmp_path / "ood.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"ood\.safetensors is damaged"):
        load_bundle(tmp_path)
    with pytest.raises(UserError, match=r"ood\.safetensors cannot be read"):
        OutOfDistribution.load(tmp_path / "ood.safetensors")
