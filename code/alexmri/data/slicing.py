"""Cut slices out of a volume: which ones, which way round, how large and how bright.

The same function serves `alexmri slices` and the server, with the parameters stored in the model.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, model_validator

from alexmri.data.intensities import PERCENTILES, Bounds, percentile_bounds, scale
from alexmri.data.pixels import SCALED, SCALED_KEY, Pixels
from alexmri.errors import UserError
from alexmri.files import read_json_object

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = get_args(Plane)
# The axis of a volume that a plane is perpendicular to, and those that become columns and rows.
AXES: dict[str, tuple[int, int, int]] = {
    "axial": (2, 0, 1),
    "coronal": (1, 0, 2),
    "sagittal": (0, 1, 2),
}
DIRECTIONS = ("left-right", "front-back", "head-foot")
# A slice of 0.1 mm pixels has 2,560 of them on a side.
MAX_SIDE = 4096
# Spacings that differ less give the same pixels.
SAME_SPACING = 1e-3

Millimetres = Annotated[float, Field(gt=0, le=1000)]


SCHEMA, SLICES = "alexmri.slices/1", "slices.json"


class NotAScanError(UserError):
    """The files are whole, and hold no volume that could be cut so: a report, a localizer."""


class Slicing(BaseModel):
    """How slices are cut, as slices.json and model.json store it.

    Attributes:
        plane: the plane of the slices.
        every_mm: distance between slices, at least that of the volume; None takes all.
        center: how many slices around the middle are taken of those; None takes all.
        spacing_mm: side of a pixel; None takes the finer of the two in the plane.
        intensity: what becomes black and white: two percentiles of all voxels of the volume, a
            window in the unit of the scan, or the window that the scan names itself ("voi").
        window: center and width.
        bits: per pixel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    plane: Plane = "axial"
    every_mm: Millimetres | None = None
    center: Annotated[int, Field(ge=1, le=100_000)] | None = None
    spacing_mm: Millimetres | None = None
    intensity: Literal["percentiles", "window", "voi"] = "percentiles"
    percentiles: Bounds = PERCENTILES
    window: Bounds | None = None
    bits: Literal[8, 16] = 8

    @model_validator(mode="after")
    def _check(self) -> "Slicing":
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("percentiles must be two numbers from 0 to 100, the lower one first")
        if (self.intensity == "window") != (self.window is not None):
            raise ValueError("a window belongs to the intensity 'window', and to no other")
        if self.window and self.window[1] <= 0:
            raise ValueError("the width of the window must be more than 0")
        return self


# How a server cuts volumes for a model whose training images name no parameters.
UNSTATED = Slicing(center=32)


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A scan in canonical orientation (RAS+, the nearest axes).

    Attributes:
        voxels_XYZ: `float32`; indices grow to the subject's right, front and head.
        spacing_mm: between voxels along the three axes.
        bounds: the values that the scan itself wants black and white, None where it names none.
        inverted: whether low values are bright (MONOCHROME1).
        uneven: the axis along which the distance between slices varies, None where it does not.
        notes: what a reader should know, in one sentence each.
    """

    voxels_XYZ: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    bounds: Bounds | None = None
    inverted: bool = False
    uneven: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One slice: `uint8` or `uint16` pixels (H, W), and where it was in the volume.

    `index` counts from 0 at the foot, back or left end; `position_mm` from the volume's middle.
    """

    pixels_HW: NDArray[Any]
    index: int
    position_mm: float


def cut(volume: Volume, slicing: Slicing) -> list[Slice]:
    """Return the slices of `volume`, from foot to head, back to front or left to right.

    Axial slices show the front at the top, coronal ones the head, both with the subject's left on
    the right side of the image (radiological). Sagittal ones show the head at the top and the front
    on the left. In the plane, pixels are made square by an antialiased bilinear filter; voxels are
    never interpolated between slices.

    Raises:
        NotAScanError: the volume is a single slice of another plane.
        UserError: slices are missing across this plane, the volume has no contrast, names no
            window of its own, or the slices would be too large.
    """
    axis, *plane = AXES[slicing.plane]
    _require_extent(volume, slicing.plane)
    bounds = _bounds(volume, slicing)
    size = _size(volume, plane, slicing.spacing_mm)
    spacing = volume.spacing_mm[axis]
    count = volume.voxels_XYZ.shape[axis]
    dtype = np.uint8 if slicing.bits == 8 else np.uint16
    slices = []
    for index in _indices(count, spacing, slicing):
        # Rows go from the front or head down, columns from the right or front.
        values_HW = np.moveaxis(volume.voxels_XYZ, axis, 0)[index][::-1, ::-1].T
        if size != values_HW.shape[::-1]:
            picture = Image.fromarray(np.ascontiguousarray(values_HW))
            values_HW = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        pixels_HW = scale(values_HW, bounds, dtype)
        if volume.inverted:
            pixels_HW = np.iinfo(dtype).max - pixels_HW
        slices.append(Slice(pixels_HW, index, round((index - (count - 1) / 2) * spacing, 3)))
    return slices


def as_png(pixels_HW: NDArray[Any]) -> bytes:
    """Return a slice as PNG; one of 16 bits says that it is scaled, so nothing scales it again."""
    info = PngInfo()
    if pixels_HW.dtype == np.uint16:
        info.add_text(SCALED_KEY, SCALED)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def eight_bit(pixels_HW: NDArray[Any]) -> Pixels:
    """Return a slice as `read_picture` reads it from its PNG."""
    return pixels_HW if pixels_HW.dtype == np.uint8 else scale(pixels_HW, (0, 2**16 - 1))


def read_slicing(folder: Path) -> Slicing | None:
    """Return the parameters by which the images in `folder` were cut; None without slices.json.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    document = read_json_object(folder / SLICES)
    if document is None:
        return None
    try:
        if document.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {document.get('schema')}, not {SCHEMA}")
        return Slicing.model_validate(document["slicing"])
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / SLICES} cannot be used: {reason}; remove it") from None


def _require_extent(volume: Volume, plane: Plane) -> None:
    axis, *in_plane = AXES[plane]
    shape = volume.voxels_XYZ.shape
    thin = next((a for a in in_plane if shape[a] < 2), None)
    if thin is not None:
        acquired = next(name for name in PLANES if AXES[name][0] == thin)
        raise NotAScanError(
            f"no {plane} slice can be cut, because it is a single {acquired} slice; ask for the"
            f" {acquired} plane"
        )
    if volume.uneven is not None and volume.uneven != axis:
        raise UserError(
            f"no {plane} slice can be cut, because slices are missing in the"
            f" {DIRECTIONS[volume.uneven]} direction; copy the series anew"
        )


def _bounds(volume: Volume, slicing: Slicing) -> Bounds:
    if slicing.intensity == "window" and slicing.window:
        center, width = slicing.window
        return center - width / 2, center + width / 2
    if slicing.intensity == "voi":
        if volume.bounds is None:
            raise UserError("it names no window of its own (VOI LUT); scale it by percentiles")
        return volume.bounds
    # A volume of one slice has the percentiles of that slice.
    low, high = percentile_bounds(volume.voxels_XYZ, slicing.percentiles)
    if low == high:
        raise UserError(f"it has no contrast: all of its voxels are {low:g}")
    return low, high


def _size(volume: Volume, plane: Sequence[int], wanted_mm: float | None) -> tuple[int, int]:
    """Return width and height of the slices."""
    spacings = [volume.spacing_mm[axis] for axis in plane]
    side = wanted_mm or min(spacings)
    counts = [volume.voxels_XYZ.shape[axis] for axis in plane]
    width, height = (
        count if abs(spacing / side - 1) < SAME_SPACING else max(1, round(count * spacing / side))
        for count, spacing in zip(counts, spacings, strict=True)
    )
    if max(width, height) > MAX_SIDE:
        raise UserError(
            f"its slices would have {width} x {height} pixels of {side:g} mm; a side may have"
            f" {MAX_SIDE} at most"
        )
    return width, height


def _indices(count: int, spacing: float, slicing: Slicing) -> list[int]:
    """Return which of `count` slices are taken, in order."""
    step = max(1.0, (slicing.every_mm or 0) / spacing)
    middle = (count - 1) / 2
    # Outwards from the middle, so that the middle is met whatever the step.
    reach = int(middle / step)
    found = sorted({round(middle + k * step) for k in range(-reach, reach + 1)})
    if step == 1.0:
        found = list(range(count))
    wanted = min(slicing.center or len(found), len(found))
    start = (len(found) - wanted) // 2
    return found[start : start + wanted]
