"""Synthetic brain slices that leak between subjects as the public pictures do, to try the product.

The numbers come from the forensic description of the public set of 6,400 slices (200 subjects x
32 slices, 176 x 208 pixels): outline per slice, intensities, ventricle and CSF fractions by class,
and how alike slices are within and between subjects. Where it gives none, the anatomy is drawn by
eye and the lengths are tuned to those likenesses. Nothing here says anything about a person.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from alexmri.errors import UserError
from alexmri.files import filling

Floats = npt.NDArray[np.float32]

DEMO_SUBJECTS: Mapping[str, int] = {
    "NonDemented": 18,
    "VeryMildDemented": 12,
    "MildDemented": 7,
    "ModerateDemented": 3,
}
SLICES, HEIGHT, WIDTH = 32, 208, 176
COMMENT = "synthetic picture (alexmri phantom), not a person"
README = "README.txt"
README_TEXT = """\
Synthetic pictures drawn by alexmri (seed {seed}): not people, not patients, and not for medical
conclusions. They show how the product works, and how slices of one subject on both sides of a
split inflate a score.
"""

# Share of the brain's area over a subject's slices: ventricles (mean, sd), all CSF (mean, sd).
FRACTIONS = {
    "MildDemented": (0.094, 0.017, 0.279, 0.039),
    "ModerateDemented": (0.097, 0.017, 0.289, 0.043),
    "NonDemented": (0.062, 0.026, 0.201, 0.059),
    "VeryMildDemented": (0.080, 0.025, 0.247, 0.048),
}

# Outline: a superellipse, its full height and width in pixels at three slices.
OUTLINE_SLICES = (1, 16, 32)
OUTLINE_HEIGHT, OUTLINE_WIDTH = (171, 169, 160), (137, 137, 134)
EXPONENT = 2.2
CENTRE_X, CENTRE_Y = 86, 104

# Ventricles as tapering capsules, drawn by eye at five slices and interpolated between them. A row
# is a slice: x, y and radius of one end, then of the other (pixels from the centre, mirrored in x).
KEY_SLICES = (1, 8, 16, 24, 32)
VENTRICLES = {
    "anterior horn": (
        (34, -28, 8, 27, -17, 6),
        (29, -28, 9, 23, -12, 5),
        (25, -30, 9, 13, -14, 6),
        (21, -33, 8, 9, -4, 8),
        (15, -28, 4, 12, 0, 7),
    ),
    "posterior horn": (
        (5, 28, 2, 11, 42, 4),
        (5, 32, 3, 14, 46, 5),
        (9, 20, 6, 13, 36, 8),
        (8, 0, 8, 13, 33, 6),
        (12, 0, 7, 14, 26, 3),
    ),
    "third ventricle": (
        (0, -24, 8, 0, 14, 3),
        (0, -16, 7, 0, 20, 4),
        (0, -8, 4, 0, 16, 5),
        (0, -4, 3, 0, 8, 3),
        (0, -4, -8, 0, 8, -8),
    ),
}

# Grey value by distance in pixels from the edge of the CSF: sulcus, cortex, white matter.
CORTEX = ((-4.0, -1.5, 0.0, 1.5, 3.0, 5.0, 9.0, 14.0), (33, 48, 96, 122, 140, 176, 207, 219))
VENTRICLE_WALL = ((-2.0, 0.0, 1.2, 2.2), (30, 92, 180, 240))


def write_demo_data(
    folder: Path,
    *,
    seed: int = 0,
    subjects: Mapping[str, int] = DEMO_SUBJECTS,
    slices: int = SLICES,
    track: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda items, total, text: items,
) -> int:
    """Write `<Class>/<slice> (<subject>).jpg` into a new or empty folder; return the files' number.

    The same arguments give the same bytes; a subject's pictures depend on the seed, the class and
    the subject's number alone. Nothing appears in the folder before everything is drawn.
    """
    if not 1 <= slices <= SLICES:
        raise UserError(f"A demo subject has 1 to {SLICES} slices, not {slices}; change `slices`.")
    _refuse_occupied(folder)
    people = [(name, number) for name, n in subjects.items() for number in range(1, n + 1)]
    depth_SHW = draw_outline()
    with filling(folder) as new:
        for name in subjects:
            (new / name).mkdir()
        for name, number in track(people, len(people), "drawing synthetic people"):
            slices_SHW = draw_subject(seed, name, number, depth_SHW)[:slices]
            for index, slice_HW in enumerate(slices_SHW, start=1):
                path = new / name / f"{index} ({number}).jpg"
                Image.fromarray(slice_HW).save(path, quality=75, comment=COMMENT)
        (new / README).write_text(README_TEXT.format(seed=seed))
    return len(people) * slices


def draw_outline() -> Floats:
    """Return how deep each pixel of each slice lies in the brain, 0 outside: one for everybody."""
    slice_S11 = np.arange(1, SLICES + 1)[:, None, None]
    half_height_S11 = np.interp(slice_S11, OUTLINE_SLICES, OUTLINE_HEIGHT) / 2
    half_width_S11 = np.interp(slice_S11, OUTLINE_SLICES, OUTLINE_WIDTH) / 2
    y_HW, x_HW = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    x_HW, y_SHW = np.abs(x_HW - CENTRE_X), (y_HW - CENTRE_Y) / half_height_S11
    # The lower half is the narrower one.
    half_width_SHW = half_width_S11 * (1 - 0.06 * np.sin(np.pi * np.clip(y_SHW, 0, 1)))
    radius_SHW = (x_HW / half_width_SHW) ** EXPONENT + np.abs(y_SHW) ** EXPONENT
    # The fissure notches both poles.
    inside_SHW = radius_SHW < 1 - 0.07 * np.exp(-((x_HW / 3) ** 2))
    return np.stack([ndimage.distance_transform_edt(inside_HW) for inside_HW in inside_SHW]).astype(
        np.float32
    )


def draw_subject(seed: int, name: str, number: int, depth_SHW: Floats) -> npt.NDArray[np.uint8]:
    """Return one subject's 32 slices."""
    entropy = (seed, sorted(FRACTIONS).index(name), number)
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    ventricle_share, sulcus_share = _draw_shares(rng, name)
    inside_SHW = depth_SHW > 0

    # Arrays over the pixels inside the outline only (P) are half of the work.
    def field(slices: float, pixels: float) -> Floats:
        return _smooth_field(rng, slices, pixels)[inside_SHW]

    slice_P, y_P, x_P = (axis.astype(np.float32) for axis in np.nonzero(inside_SHW))
    x_P += 2.2 * field(7, 20) - CENTRE_X
    y_P += 2.2 * field(7, 20) - CENTRE_Y

    # Distances to the fluid; each shape ends where it covers the subject's share of the brain.
    ventricle_P = _ventricle_distance(np.abs(x_P), y_P, inside_SHW.sum(axis=(1, 2)))
    ventricle_P -= np.quantile(ventricle_P, ventricle_share)
    depth_P = depth_SHW[inside_SHW]
    fissure_P = np.hypot(x_P, np.maximum(44 - np.abs(y_P), 0))
    reach_P = np.maximum(17 + 6 * field(3.5, 12), 4)
    beyond_P = np.maximum(np.minimum(depth_P, fissure_P + 16) - reach_P, 0)
    sulcus_P = np.hypot(_fold_distance(rng)[inside_SHW], beyond_P)
    cortex_P = np.minimum.reduce([depth_P + 1, sulcus_P, fissure_P])
    cortex_P -= np.quantile(cortex_P, sulcus_share)

    grey_P = np.minimum(np.interp(cortex_P, *CORTEX), np.interp(ventricle_P, *VENTRICLE_WALL))
    nuclei_P = np.hypot((np.abs(x_P) - 24) / 15, (y_P - 8) / 26) + np.abs(slice_P - 9) / 16
    grey_P *= 1 - 0.16 / (1 + np.exp((nuclei_P - 1) / 0.08))
    grey_P *= rng.normal(1, 0.04) + 0.03 * field(12, 40)
    grey_P += 7 * rng.standard_normal(grey_P.shape, np.float32)
    subject_SHW = np.zeros(inside_SHW.shape, np.uint8)
    # Inside stays above the threshold (18) that finds the outline in the public slices.
    subject_SHW[inside_SHW] = np.clip(grey_P, 24, 255)
    return subject_SHW


def _draw_shares(rng: np.random.Generator, name: str) -> tuple[float, float]:
    """Draw which shares of a subject's brain are ventricles and fluid outside the ventricles."""
    ventricle_mean, ventricle_sd, csf_mean, csf_sd = FRACTIONS[name]
    # One atrophy moves both: ventricles and sulci widen together.
    atrophy, other = rng.standard_normal(2)
    ventricle = ventricle_mean + ventricle_sd * (0.8 * atrophy + 0.6 * other)
    ventricle = float(np.clip(ventricle, 0.02, 0.18))
    return ventricle, max(csf_mean + csf_sd * atrophy - ventricle, 0.03)


def _smooth_field(rng: np.random.Generator, slices: float, pixels: float) -> Floats:
    """Return a Gaussian random field (mean 0, sd 1) with these correlation lengths."""
    along_SK = _bumps(SLICES, slices)
    down_HL, across_WM = _bumps(HEIGHT, pixels), _bumps(WIDTH, pixels)
    knots = (along_SK.shape[1], down_HL.shape[1], across_WM.shape[1])
    knots_KLM = rng.standard_normal(knots, np.float32)
    planes_KHW = down_HL @ knots_KLM @ across_WM.T
    return np.tensordot(along_SK, planes_KHW, axes=1).astype(np.float32, copy=False)


def _bumps(size: int, length: float) -> Floats:
    """Return Gaussian bumps a length apart, scaled so that white noise on them keeps sd 1."""
    centres = np.arange(-2 * length, size + 2 * length, length)
    bumps = np.exp(-(((np.arange(size)[:, None] - centres) / length) ** 2))
    bumps /= np.linalg.norm(bumps, axis=1, keepdims=True)
    return bumps.astype(np.float32)


def _fold_distance(rng: np.random.Generator) -> Floats:
    """Return the pixels to the nearest sulcus, if sulci went on to the centre.

    Sulci are the zeros of the subject's random field, mixed with a wave around the centre that
    makes them run inwards; value over slope is the distance to the zero.
    """
    y_HW, x_HW = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    angle_HW = np.arctan2(x_HW - CENTRE_X, 0.8 * (y_HW - CENTRE_Y))
    folds_SHW = _smooth_field(rng, 3.5, 8) + 1.6 * np.sin(13 * angle_HW)
    slope_SHW = np.hypot(*np.gradient(folds_SHW, axis=(1, 2)))
    distance_SHW: Floats = np.abs(folds_SHW) / np.maximum(slope_SHW, 0.09)
    return distance_SHW


def _ventricle_distance(x_P: Floats, y_P: Floats, pixels_S: npt.NDArray[np.int64]) -> Floats:
    """Return the pixels to the nearest of the capsules that make up the ventricles."""
    starts = np.cumsum(pixels_S)[:-1]
    slices = list(zip(np.split(x_P, starts), np.split(y_P, starts), strict=True))
    distances = []
    for rows in VENTRICLES.values():
        columns = np.transpose(rows)
        keys = [np.interp(range(1, SLICES + 1), KEY_SLICES, key).tolist() for key in columns]
        capsule = []
        for (x, y), x0, y0, r0, x1, y1, r1 in zip(slices, *keys, strict=True):
            dx, dy = x1 - x0, y1 - y0
            along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx**2 + dy**2), 0, 1)
            across = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
            capsule.append(across - r0 - along * (r1 - r0))
        distances.append(np.concatenate(capsule))
    nearest_P: Floats = np.minimum.reduce(distances)
    return nearest_P


def _refuse_occupied(folder: Path) -> None:
    """Raise UserError where writing would touch what somebody else put there."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new folder for the demo data.")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if strangers := [name for name in found if name != README]:
        raise UserError(
            f"{folder} already holds {strangers[0]}; name a new or empty folder for the demo data."
        )
