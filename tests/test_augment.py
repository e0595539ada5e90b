"""Augmentation: random draws that depend on nothing but (seed, epoch, row), and what they do."""

from collections.abc import Callable

import albumentations
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alexmri.data.augment import (
    DRAWS,
    Augment,
    BatchedAugment,
    Placement,
    choose_augment,
    uniforms,
    warp,
)
from alexmri.data.augment_albumentations import AlbumentationsAugment
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve

BACKENDS = ("batched", "albumentations")
Maker = Callable[..., Augment]


def augment_of(backend: str, **values: object) -> Augment:
    chosen = {"augment": "shift-scale-rotate", "augment_probability": 1, **values}
    augment = choose_augment(resolve([Layer("t", {**chosen, "augment_backend": backend})]).settings)
    assert augment is not None
    return augment


def slices(count: int, size: int = 32) -> Tensor:
    """Return equal images with a disc off the centre."""
    rows, columns = np.indices((size, size))
    disc = ((rows - 15) ** 2 + (columns - 17) ** 2 < 120) * 200
    return torch.from_numpy(np.repeat(disc[None, None].astype(np.uint8), count, axis=0))


# --- what holds for either backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_augmentation_is_a_function_of_seed_epoch_and_row(backend: str) -> None:
    augment = augment_of(backend)
    whole = augment(slices(6), 3, np.arange(6))
    assert torch.equal(augment(slices(2), 3, np.array([5, 4])), whole[[5, 4]])
    assert torch.equal(augment_of(backend)(slices(6), 3, np.arange(6)), whole)
    assert not torch.equal(augment(slices(6), 4, np.arange(6)), whole)
    assert not torch.equal(augment_of(backend, seed=1)(slices(6), 3, np.arange(6)), whole)
    assert len({image.numpy().tobytes() for image in whole}) == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_probability_is_the_share_of_changed_images(backend: str) -> None:
    images, rows = slices(1000), np.arange(1000)
    changed = augment_of(backend, augment_probability=0.2)(images, 1, rows) != images
    assert changed.any(dim=3).any(dim=2).float().mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_border_is_black_and_the_source_stays(backend: str) -> None:
    white = torch.full((200, 1, 32, 32), 255, dtype=torch.uint8)
    moved = augment_of(backend)(white, 1, np.arange(200))
    assert moved.min() == 0
    assert moved.dtype == torch.uint8
    assert white.min() == 255


@pytest.mark.parametrize("backend", BACKENDS)
def test_colours_move_together(backend: str) -> None:
    gray = slices(20)
    colour = gray.repeat(1, 3, 1, 1)
    moved = augment_of(backend)(colour, 1, np.arange(20))
    assert torch.equal(moved, augment_of(backend)(gray, 1, np.arange(20)).repeat(1, 3, 1, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["best", "subjects"])
def test_a_recipe_without_shifts_places_slices_as_it_did_with_a_limit_of_003(
    backend: str, recipe: str
) -> None:
    """At 32 pixels that limit moved nothing: every figure of these recipes stays what it was."""
    chosen = resolve([Layer("t", {"recipe": recipe, "augment_backend": backend})]).settings
    assert chosen.shift_limit == 0
    before = chosen.model_copy(update={"shift_limit": 0.03})
    rows = np.arange(500)
    augment, augment_before = choose_augment(chosen), choose_augment(before)
    assert augment is not None
    assert augment_before is not None
    assert torch.equal(augment(slices(500), 3, rows), augment_before(slices(500), 3, rows))
    if isinstance(augment, BatchedAugment) and isinstance(augment_before, BatchedAugment):
        moved, placement = augment.draw(3, rows, 32, 32)
        moved_before, placement_before = augment_before.draw(3, rows, 32, 32)
        assert np.array_equal(moved, moved_before)
        for name in ("shift_x", "shift_y", "scale_x", "scale_y", "degrees"):
            assert np.array_equal(getattr(placement, name), getattr(placement_before, name))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_least_shift_that_is_accepted_moves_something(backend: str) -> None:
    only_shift = {"scale_limit": 0, "rotate_limit": 0}
    images, rows = slices(400), np.arange(400)
    assert not torch.equal(
        augment_of(backend, shift_limit=0.035, **only_shift)(images, 1, rows), images
    )
    with pytest.raises(UserError, match=r"'shift_limit' is 0\.03125 in t, which does nothing"):
        augment_of(backend, shift_limit=1 / 32, **only_shift)


def test_none_is_none() -> None:
    assert choose_augment(resolve([Layer("t", {"augment": "none"})]).settings) is None


# --- the batched backend is the library's transform


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, int, int, int]:
    """Return placements of a few images, the images' height and width, and a seed for them."""
    height, width = draw(st.integers(32, 224)), draw(st.integers(32, 224))
    count = draw(st.integers(1, 4))

    def several(low: float, high: float) -> np.ndarray:
        return np.array(draw(st.lists(st.floats(low, high), min_size=count, max_size=count)))

    placement = Placement(
        shift_x=np.trunc(several(-0.6, 0.6) * width),
        shift_y=np.trunc(several(-0.6, 0.6) * height),
        scale_x=several(0.4, 1.9),
        scale_y=several(0.4, 1.9),
        degrees=several(-180, 180),
    )
    return placement, height, width, draw(st.integers(0, 2**32 - 1))


def by_the_library(image_HWC: np.ndarray, placement: Placement, i: int) -> np.ndarray:
    x, y = int(placement.shift_x[i]), int(placement.shift_y[i])
    wide, high = float(placement.scale_x[i]), float(placement.scale_y[i])
    turn = float(placement.degrees[i])
    affine = albumentations.Affine(
        translate_px={"x": (x, x), "y": (y, y)},
        scale={"x": (wide, wide), "y": (high, high)},
        rotate=(turn, turn),
        shear=(0, 0),
        interpolation=cv2.INTER_LINEAR,
        border_mode=cv2.BORDER_CONSTANT,
        fill=0,
        p=1,
    )
    moved: np.ndarray = albumentations.Compose([affine])(image=image_HWC)["image"]
    return moved


@settings(max_examples=150, deadline=None, derandomize=True)
@given(placements())
def test_with_equal_parameters_no_pixel_differs_by_more_than_one_level(
    case: tuple[Placement, int, int, int],
) -> None:
    placement, height, width, seed = case
    noise = np.random.default_rng(seed)
    shape = (len(placement.degrees), height, width, 3)
    images_NHWC = noise.integers(0, 256, shape, dtype=np.uint8)
    ours = warp(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2), placement)
    for i, image_HWC in enumerate(images_NHWC):
        theirs = by_the_library(image_HWC, placement, i).astype(np.int16)
        difference = np.abs(ours[i].permute(1, 2, 0).numpy() - theirs)
        assert difference.max() <= 1


def test_with_the_recipes_parameters_hardly_a_pixel_differs_at_all() -> None:
    augment = BatchedAugment(resolve([Layer("t", {"augment_probability": 1})]).settings)
    for size in (32, 224):
        noise = np.random.default_rng(size).integers(0, 256, (40, size, size, 1), dtype=np.uint8)
        chosen, placement = augment.draw(1, np.arange(40), size, size)
        assert len(chosen) == 40
        ours = warp(torch.from_numpy(noise).permute(0, 3, 1, 2), placement).permute(0, 2, 3, 1)
        theirs = np.stack([by_the_library(noise[i], placement, i) for i in range(40)])
        assert (ours.numpy() != theirs).mean() < 0.002


def test_both_backends_draw_from_the_same_distribution() -> None:
    """Compare what the draws do to an image: the mean of many moved copies, and their spread."""
    limits = {"shift_limit": 0.2, "scale_limit": 0.2, "rotate_limit": 30}
    rows = np.arange(3000)
    ours, theirs = (augment_of(b, **limits)(slices(3000), 1, rows).float() for b in BACKENDS)
    assert (ours.mean(dim=0) - theirs.mean(dim=0)).abs().max() < 12  # of 200; 3 standard errors
    assert (ours.std(dim=0) - theirs.std(dim=0)).abs().max() < 12


def test_the_draws_are_uniform_and_independent() -> None:
    draws = np.concatenate([uniforms(0, epoch, np.arange(20_000)) for epoch in (1, 2)])
    assert draws.min() >= 0
    assert draws.max() < 1
    for row in draws:
        counts = np.histogram(row, 20, (0, 1))[0]
        assert np.abs(counts - 1000).max() < 150  # 5 standard deviations
    between = np.corrcoef(draws) - np.eye(2 * DRAWS)
    assert np.abs(between).max() < 0.036  # 5 standard errors
    assert np.abs(np.corrcoef(draws[:, 1:], draws[:, :-1])[: 2 * DRAWS, 2 * DRAWS :]).max() < 0.036


# --- the reference is the library's class


def test_the_reference_is_the_librarys_shift_scale_rotate() -> None:
    ours = augment_of("albumentations")
    assert isinstance(ours, AlbumentationsAugment)
    chosen = resolve([]).settings
    with pytest.warns(UserWarning, match="special case of Affine"):
        library = albumentations.ShiftScaleRotate(
            shift_limit=chosen.shift_limit,
            scale_limit=chosen.scale_limit,
            rotate_limit=chosen.rotate_limit,
            border_mode=cv2.BORDER_CONSTANT,
            fill=0,
            p=1,
        )
    ours._compose.transforms[0] = library
    reference = augment_of("albumentations")(slices(50), 1, np.arange(50))
    assert torch.equal(ours(slices(50), 1, np.arange(50)), reference)
