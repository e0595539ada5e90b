"""Bring the head on a slice to one place, size, direction and brightness in the network's square.

Where a scanner or a tool has put the head, how it lies, how much black is around it and how bright
it is then change almost nothing of what the network sees.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The side of the square is this many times the head's spread (the root of the summed variances of
# its intensity along x and y). A brain on the public slices then fills 0.91 of the height.
SIDE_PER_SPREAD = 3.5
# What is darker than this share of the median light says nothing about where the head is: noise
# around it, or a background that is not quite black.
DARK_SHARE = 1 / 8
# A head is turned upright where it is longer than wide by the second number, not at all below the
# first: a round one has no direction. On the public slices the ratio is 1.13 to 1.41.
ROUND, LONG = 1.05, 1.10
# This share of all pixels is black once intensities are normalised, and half of the light lies
# below this gray value. Of the public slices the brightest tissue then has about 215.
BLACK_SHARE, MEDIAN_LIGHT = 0.005, 160
# Head and light are looked for in an image reduced to at most so many pixels a side. The square is
# sampled at about so many points per pixel and axis. On the full image and with 6 points, a public
# slice takes 0.8 ms instead of 0.36, and a moved head changes its pixels by 0.3 instead of 0.6.
SEARCH_SIDE, POINTS = 64, 3
LEVELS = 256


def to_square(image: Image.Image, image_size: int, *, center: str, intensity: str) -> Image.Image:
    """Return an image of mode L or RGB as a square of `image_size` pixels, antialiased.

    `center` "none" stretches all of it to the square. "moments" keeps the aspect: the intensity
    centroid comes to the middle, the spread of the intensities around it decides the scale, and
    their longer axis the rotation, to the nearest of upright and level (normalisation by image
    moments, Hu 1962). What lies outside the image is black. `intensity` "median" maps the darkest
    pixels to black and the median light to `MEDIAN_LIGHT`. An image without light stays as it is.
    """
    reduced = _Reduced(image) if (center, intensity) != ("none", "none") else None
    if reduced is None or center == "none":
        square = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    else:
        square = _around_head(image, image_size, reduced)
    if reduced is None or intensity == "none":
        return square
    return square.point(reduced.even_light() * len(square.getbands()))


def _around_head(image: Image.Image, image_size: int, reduced: "_Reduced") -> Image.Image:
    x, y, side, angle = reduced.head()
    factor = max(1, round(side / image_size / POINTS))
    if factor > 1:
        image, x, y, side = image.reduce(factor), x / factor, y / factor, side / factor
    # The means of the points are the pixels of the square.
    points = math.ceil(side / image_size)
    fine = points * image_size
    along, across = math.cos(angle) * side / fine, math.sin(angle) * side / fine
    start_x = x - (along - across) * fine / 2
    start_y = y - (along + across) * fine / 2
    sampled = image.transform(
        (fine, fine),
        Image.Transform.AFFINE,
        (along, -across, start_x, across, along, start_y),
        Image.Resampling.BILINEAR,
    )
    return sampled.reduce(points)


class _Reduced:
    """An image in gray, reduced, and what is found on it.

    All sums are of whole numbers, so that every machine finds the same.
    """

    def __init__(self, image: Image.Image) -> None:
        self.width, self.height = image.size
        self.step_x, self.step_y = (math.ceil(side / SEARCH_SIDE) for side in image.size)
        reduced = image.convert("L").reduce((self.step_x, self.step_y))
        self.counts_V = np.array(reduced.histogram())
        self.gray_HW = np.asarray(reduced).astype(np.int64)

    def even_light(self) -> list[int]:
        """Return the gray value that each gray value becomes."""
        black = int(np.searchsorted(np.cumsum(self.counts_V), BLACK_SHARE * self.counts_V.sum()))
        median = _median_light(self.counts_V[black:])
        if not median:
            return list(range(LEVELS))
        values_V = (2 * (np.arange(LEVELS) - black) * MEDIAN_LIGHT + median) // (2 * median)
        evened: list[int] = np.clip(values_V, 0, LEVELS - 1).tolist()
        return evened

    def head(self) -> tuple[float, float, float, float]:
        """Return the middle of the head in pixels (x, y), the side of its square, and its angle.

        The angle is in radians, clockwise from the axes of the image.
        """
        dark = round(_median_light(self.counts_V) * DARK_SHARE)
        light_HW = np.maximum(self.gray_HW - dark, 0)
        light_W, light_H = light_HW.sum(axis=0), light_HW.sum(axis=1)
        total = int(light_W.sum())
        if not total:
            return self.width / 2, self.height / 2, max(self.width, self.height), 0.0
        places_W, places_H = np.arange(len(light_W)), np.arange(len(light_H))
        x, y = int(light_W @ places_W) / total, int(light_H @ places_H) / total
        xx = (int(light_W @ places_W**2) / total - x * x) * self.step_x**2
        yy = (int(light_H @ places_H**2) / total - y * y) * self.step_y**2
        xy = (int((light_HW @ places_W) @ places_H) / total - x * y) * self.step_x * self.step_y
        # A few bright pixels have no spread to speak of.
        spread = math.sqrt(max(0.0, xx + yy))
        side = max(SIDE_PER_SPREAD * spread, max(self.width, self.height) / 8)
        return (x + 0.5) * self.step_x, (y + 0.5) * self.step_y, side, _angle(xx, yy, xy)


def _median_light(counts_V: NDArray[np.int64]) -> int:
    """Return the value up to which half of the light lies; `counts_V` are those of 0, 1, 2, …

    Black pixels have no part in it, so the black around a head changes nothing.
    """
    light_V = np.cumsum(counts_V * np.arange(len(counts_V)))
    return int(np.searchsorted(2 * light_V, light_V[-1]))


def _angle(xx: float, yy: float, xy: float) -> float:
    """Return by how much the axes of a covariance are turned against those of the image."""
    difference = math.hypot(xx - yy, 2 * xy)
    longer, shorter = (xx + yy + difference) / 2, (xx + yy - difference) / 2
    if longer <= 0:
        return 0.0
    ratio = math.sqrt(longer / shorter) if shorter > 0 else LONG
    trusted = min(1.0, max(0.0, (ratio - ROUND) / (LONG - ROUND)))
    # atan of this ratio, not atan2: of upright and level the nearer one.
    doubled = math.atan2(2 * xy, xx - yy) if xx >= yy else -math.atan2(2 * xy, yy - xx)
    return trusted * doubled / 2
