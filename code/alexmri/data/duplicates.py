"""Find images that are copies of others: rotated, flipped, with other intensities or saved anew.

Candidates come from descriptions of 32 x 32 pixels that no rotation, flip or change of intensities
alters (`rotation_invariant`). Two screens follow, the second on the files themselves at up to 96
pixels, where a neighbouring slice of the same person differs clearly from a copy.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from alexmri.data.decode import read_image
from alexmri.data.nearest import Indices, Vectors, pairs_above
from alexmri.data.rotation_invariant import RingSpectra, describe, intensity_invariant_correlation

Size = tuple[int, int]

# Descriptions of copies agree to 0.964 or better: measured on real slices with turns of 4 to 15
# degrees and by quarters, flips, gamma 0.6 and 1.6, brightness 1.3, contrast 0.6 and 1.3.
CANDIDATE = 0.96
# The first screen only has to save reading files. Neighbouring slices, which lie straight to each
# other, reach 0.9976 in it, straight copies 0.9984 or more; rotated and so resampled ones 0.9955.
SCREEN_STRAIGHT, SCREEN_ROTATED, STRAIGHT = 0.9975, 0.994, 1.5
# At 96 pixels neighbouring slices of the public set reach 0.993 with any curve of gray values
# between them, copies 0.9965 or more. Small images hold less to tell them apart by.
SIDE, COPY = 96, 0.9955
SMALL_SIDE, COPY_OF_SMALL = 64, 0.9985
# Rotations are tried so many degrees around the one found at 32 x 32.
ANGLES = (-0.5, 0.0, 0.5)
DISC = 0.93
# A rotation by less is none, and gray values that differ by less on average (of 255) are the same.
MIN_DEGREES, MIN_DIFFERENCE = 1.0, 4.0
KEPT_IN_MEMORY = 2048


@dataclass(frozen=True, slots=True)
class Copy:
    """Image `second` is `first` again, rotated clockwise, flipped, with other intensities."""

    first: int
    second: int
    correlation: float
    degrees: float
    flipped: bool
    other_intensities: bool

    @property
    def how(self) -> str:
        """What was done to the image, in words."""
        done = []
        degrees = self.degrees
        if self.flipped:
            # A flip and half a turn are the other flip.
            other = abs(degrees) > 90
            done.append(f"flipped {'left to right' if other else 'top to bottom'}")
            degrees = degrees - np.copysign(180, degrees) if other else degrees
        if abs(degrees) >= MIN_DEGREES:
            done.append(f"rotated by {abs(degrees):.0f} degrees")
        if self.other_intensities:
            done.append("with other intensities")
        return " and ".join(done) or "saved anew"


@dataclass(frozen=True, slots=True)
class Frame:
    """Which part of an image the circle for rotating is drawn in: a radius in pixels, or none.

    None: the image is taken as a square, whatever its sides.
    """

    radius: float | None

    def radii(self, size: Size) -> tuple[float, float]:
        """Return the radii across and down, as shares of the sides."""
        if self.radius is None:
            return 0.5, 0.5
        radius = min(self.radius, min(size) / 2)
        return radius / size[0], radius / size[1]


def find_copies(
    grays_NHW: Vectors, paths: Sequence[Path], sizes: Sequence[Size], rows: Indices
) -> list[Copy]:
    """Return the copies among `rows` of the images, at most one pair less than images alike.

    `grays_NHW` are all images at 32 x 32, `sizes` their widths and heights in the files.
    """
    if len(rows) < 2:
        return []
    reader = _Reader(paths)
    copies: list[Copy] = []
    parent = np.arange(len(paths))

    def leader(image: int) -> int:
        while parent[image] != image:
            image = int(parent[image])
        return image

    for frame, rings, i, j, mirrored in _candidates(grays_NHW, sizes, rows):
        degrees, alike = rings.align(i, j, mirrored=mirrored)
        straight = (np.abs(degrees) < STRAIGHT) & (not mirrored)
        passed = alike >= np.where(straight, SCREEN_STRAIGHT, SCREEN_ROTATED)
        for at in np.flatnonzero(passed)[np.argsort(-alike[passed], kind="stable")]:
            first, second = int(rows[i[at]]), int(rows[j[at]])
            if leader(first) == leader(second):
                continue
            copy = reader.compare(first, second, frame, float(degrees[at]), mirrored)
            if copy:
                copies.append(copy)
                parent[leader(second)] = leader(first)
    return sorted(copies, key=lambda copy: (copy.first, copy.second))


def _candidates(
    grays_NHW: Vectors, sizes: Sequence[Size], rows: Indices
) -> Iterator[tuple[Frame, RingSpectra, Indices, Indices, bool]]:
    """Yield pairs of places in `rows` that may be copies, with the frame that showed it.

    Images of another size than most are also compared at the scale of most, since some programs
    enlarge the canvas when they rotate, and stretched, since others make every image a square.
    """
    own_sizes = [sizes[row] for row in rows]
    usual = Counter(own_sizes).most_common(1)[0][0]
    unusual = np.array([at for at, size in enumerate(own_sizes) if size != usual], dtype=np.int64)
    frames: list[tuple[Frame, Indices | None]] = [(Frame(min(usual) / 2), None)]
    if len(unusual):
        frames += [(Frame(float("inf")), unusual), (Frame(None), unusual)]
    for frame, queries in frames:
        radii = np.array([frame.radii(size) for size in own_sizes], dtype=np.float32)
        rings = describe(grays_NHW[rows], radii)
        plain, mirrored = rings.vectors()
        for vectors, is_mirrored in ((plain, False), (mirrored, True)):
            i, j, _ = pairs_above(vectors, plain, CANDIDATE, queries=queries)
            if len(i):
                yield frame, rings, i, j, is_mirrored


class _Reader:
    """Reads files again, for the pairs that are worth it, and compares them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        @lru_cache(KEPT_IN_MEMORY)
        def read(row: int) -> Image.Image | None:
            found = read_image(paths[row])
            return None if isinstance(found, str) else found[1]

        self._read = read

    def compare(
        self, first: int, second: int, frame: Frame, degrees: float, mirrored: bool
    ) -> Copy | None:
        """Return what `second` is a copy of `first` by, or None where it is none."""
        images = self._read(first), self._read(second)
        if images[0] is None or images[1] is None:
            return None
        shortest = min(min(image.size) for image in images if image)
        side, min_correlation = (
            (SIDE, COPY) if shortest >= SMALL_SIDE else (SMALL_SIDE, COPY_OF_SMALL)
        )
        square_a, square_b = (_square(image, frame, 2 * side) for image in images if image)
        if mirrored:
            square_b = square_b.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        inside = _disc(side)
        a = _reduced(square_a, side)[inside]
        tries = np.stack(
            [
                # Pillow rotates against the clock.
                _reduced(square_b.rotate(-degrees - more, Image.Resampling.BICUBIC), side)[inside]
                for more in ANGLES
            ]
        )
        alike = intensity_invariant_correlation(
            np.repeat(a[None], len(ANGLES), axis=0), tries, np.ones(len(a), dtype=np.float32)
        )
        best = int(alike.argmax())
        if alike[best] < min_correlation:
            return None
        other_intensities = float(np.abs(a - tries[best]).mean()) > MIN_DIFFERENCE or _is_coloured(
            images[0]
        ) != _is_coloured(images[1])
        return Copy(
            first, second, float(alike[best]), -degrees - ANGLES[best], mirrored, other_intensities
        )


def _square(image: Image.Image, frame: Frame, side: int) -> Image.Image:
    """Return the square around the circle of `frame`, gray, with `side` pixels."""
    across, down = frame.radii(image.size)
    width, height = image.size
    box = (
        width * (0.5 - across),
        height * (0.5 - down),
        width * (0.5 + across),
        height * (0.5 + down),
    )
    return image.convert("L").resize((side, side), Image.Resampling.BILINEAR, box=box)


def _reduced(square: Image.Image, side: int) -> Vectors:
    return np.asarray(square.reduce(square.width // side), dtype=np.float32)


def _disc(side: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    inside: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = np.hypot(y, x) < DISC * side / 2
    return inside


def _is_coloured(image: Image.Image) -> bool:
    """Whether any colour differs from gray by more than what saving as JPEG leaves behind."""
    if image.mode == "L":
        return False
    pixels = np.asarray(image, dtype=np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).mean() > MIN_DIFFERENCE)
