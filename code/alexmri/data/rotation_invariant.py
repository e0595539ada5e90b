"""Describe images so that rotated, flipped and recoloured copies get the same description.

An image is read along rings around its centre, where a rotation is a shift, and its gray values
are replaced by their ranks, which no monotone change of intensities alters. The Fourier
coefficients along the rings then differ between rotated copies in their phases alone, by the angle
times the frequency. Per frequency the phase of the part that all images have in common is set to 0:
what remains is the same for every angle. A flip conjugates the coefficients. So all angles and
flips cost two products of vectors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexmri.data.nearest import BLOCK, SIDE, Indices, Vectors

RINGS, STEPS, FREQUENCIES = 14, 64, 21
# Pixels darker than this, of 255, are background: its noise has no ranks.
DARK = 8
ANGLES = 512
# Knots of the curve of gray values that `intensity_invariant_correlation` fits.
KNOTS = 8

Spectra = NDArray[np.complex64]
RADII = (np.arange(RINGS, dtype=np.float32) + 0.5) / RINGS


@dataclass(frozen=True, slots=True)
class RingSpectra:
    """Rings (N, rings, steps) of images, and their spectra (N, rings, frequencies)."""

    rings_NRT: Vectors
    spectra_NRF: Spectra

    def vectors(self) -> tuple[Vectors, Vectors]:
        """Return vectors of length 1 that no rotation changes, of images and their mirrors.

        The product of two is about the greatest correlation over all angles.
        """
        axes = [_main_axis(self.spectra_NRF[::4, :, f]) for f in range(FREQUENCIES)]
        common_RF = np.stack(axes, axis=1)
        return (
            _without_phase(self.spectra_NRF, common_RF),
            _without_phase(self.spectra_NRF.conj(), common_RF),
        )

    def align(self, i: Indices, j: Indices, *, mirrored: bool) -> tuple[Vectors, Vectors]:
        """Return the angles (degrees) that bring images j, or their mirrors, onto images i.

        Also how alike they are then, whatever their intensities.
        """
        angles, alike = np.empty(len(i), dtype=np.float32), np.empty(len(i), dtype=np.float32)
        for start in range(0, len(i), BLOCK):
            rows = slice(start, start + BLOCK)
            first, second = self.spectra_NRF[i[rows]], self.spectra_NRF[j[rows]]
            second = second.conj() if mirrored else second
            product_PF = np.einsum("prf,prf->pf", first, second.conj())
            curve_PA = np.fft.irfft(product_PF, n=ANGLES, axis=1)
            best = curve_PA.argmax(axis=1)
            pairs = np.arange(len(best))
            left, top, right = (curve_PA[pairs, (best + k) % ANGLES] for k in (-1, 0, 1))
            bend = np.minimum(left - 2 * top + right, -1e-9)
            shift = (best + 0.5 * (left - right) / bend) / ANGLES
            angles[rows] = 360 * ((shift + 0.5) % 1 - 0.5)
            rotated = self._rotated(j[rows], shift, mirrored)
            weights = np.repeat(RADII, STEPS).astype(np.float32)
            alike[rows] = intensity_invariant_correlation(
                self.rings_NRT[i[rows]].reshape(len(best), -1), rotated, weights
            )
        return angles, alike

    def _rotated(self, j: Indices, shift: NDArray[np.float64], mirrored: bool) -> Vectors:
        """Return the rings of images j, mirrored first if so, rotated by `shift` full turns."""
        rings = self.rings_NRT[j]
        place = (np.arange(STEPS) - shift[:, None] * STEPS) * (-1 if mirrored else 1)
        low = np.floor(place).astype(np.int64)
        part = (place - low)[:, None].astype(np.float32)
        before = np.take_along_axis(rings, low[:, None] % STEPS, axis=2)
        after = np.take_along_axis(rings, (low[:, None] + 1) % STEPS, axis=2)
        return (before * (1 - part) + after * part).reshape(len(j), -1)


def describe(grays_NHW: Vectors, radii_N2: Vectors) -> RingSpectra:
    """Describe images (N, 32, 32); `radii_N2` are those of the outer ring across and down.

    As shares of the image's sides: an image stretched to 32 x 32 has an ellipse for a circle.
    """
    rings = np.empty((len(grays_NHW), RINGS, STEPS), dtype=np.float32)
    spectra = np.empty((len(grays_NHW), RINGS, FREQUENCIES), dtype=np.complex64)
    shapes, shape_of = np.unique(np.round(radii_N2, 3), axis=0, return_inverse=True)
    for number, (across, down) in enumerate(shapes):
        sampler = _sampler(float(across), float(down))
        members = np.flatnonzero(shape_of.ravel() == number)
        for start in range(0, len(members), BLOCK):
            rows = members[start : start + BLOCK]
            flat = grays_NHW[rows].reshape(len(rows), -1) @ sampler
            rings[rows] = flat.reshape(-1, RINGS, STEPS)
            spectra[rows] = _spectra(flat)
    return RingSpectra(rings, spectra)


def intensity_invariant_correlation(
    first_PD: Vectors, second_PD: Vectors, weights_D: Vectors
) -> Vectors:
    """Return the correlation of pairs after a curve of gray values is fitted, the better way round.

    Where a change of intensities has cut off the brightest pixels, one is a function of the other,
    not vice versa.
    """
    ways = (_fitted(first_PD, second_PD, weights_D), _fitted(second_PD, first_PD, weights_D))
    return np.maximum(*ways)


def _fitted(target_PD: Vectors, source_PD: Vectors, weights_D: Vectors) -> Vectors:
    """Return how well a piecewise linear function of the source gives the target."""
    place = np.clip(source_PD / 255, 0, 1) * (KNOTS - 1)
    hats_PDK = np.maximum(1 - np.abs(place[:, :, None] - np.arange(KNOTS, dtype=np.float32)), 0)
    weighted_PKD = (hats_PDK * weights_D[:, None]).transpose(0, 2, 1)
    gram = (weighted_PKD @ hats_PDK).astype(np.float64) + 1e-3 * np.eye(KNOTS)
    centre = (target_PD @ weights_D) / weights_D.sum()
    centred = target_PD - centre[:, None]
    moments = (weighted_PKD @ centred[:, :, None]).astype(np.float64)
    explained = (moments * np.linalg.solve(gram, moments)).sum(axis=(1, 2))
    total = (centred**2 @ weights_D).astype(np.float64)
    share = np.clip(explained / np.maximum(total, 1e-6), 0, 1)
    explained_share: Vectors = np.sqrt(share).astype(np.float32)
    return explained_share


def _sampler(across: float, down: float) -> Vectors:
    """Return what turns pixels (1024) into rings (rings * steps) by linear interpolation."""
    turn_T = 2 * np.pi * np.arange(STEPS) / STEPS
    x = (SIDE * (0.5 + across * RADII[:, None] * np.cos(turn_T)) - 0.5).ravel()
    y = (SIDE * (0.5 + down * RADII[:, None] * np.sin(turn_T)) - 0.5).ravel()
    left, above = np.floor(x).astype(int), np.floor(y).astype(int)
    sampler = np.zeros((SIDE * SIDE, len(x)), dtype=np.float32)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.abs(1 - dx - (x - left)) * np.abs(1 - dy - (y - above))
        column = np.clip(left + dx, 0, SIDE - 1)
        row = np.clip(above + dy, 0, SIDE - 1)
        np.add.at(sampler, (row * SIDE + column, np.arange(len(x))), weight)
    return sampler


def _spectra(flat_PD: Vectors) -> Spectra:
    ranks = _ranks(flat_PD).reshape(-1, RINGS, STEPS)
    ranks -= (ranks * RADII[:, None]).sum(axis=(1, 2), keepdims=True) / (RADII.sum() * STEPS)
    spectra = np.fft.rfft(ranks, axis=2)[:, :, :FREQUENCIES] * np.sqrt(RADII)[:, None]
    spectra[:, :, 1:] *= np.sqrt(2)
    lengths = np.sqrt((np.abs(spectra) ** 2).sum(axis=(1, 2), keepdims=True))
    unit: Spectra = (spectra / np.maximum(lengths, 1e-6)).astype(np.complex64)
    return unit


def _ranks(flat_PD: Vectors) -> Vectors:
    """Return the ranks of pixels in their image; all dark ones have the highest rank of these."""
    order = np.argsort(flat_PD, axis=1)
    ranks = np.empty_like(flat_PD)
    places = np.broadcast_to(np.arange(flat_PD.shape[1], dtype=np.float32), flat_PD.shape)
    np.put_along_axis(ranks, order, places, axis=1)
    dark = (flat_PD <= DARK).sum(axis=1, keepdims=True).astype(np.float32)
    lifted: Vectors = np.maximum(ranks, dark)
    return lifted


def _main_axis(column_NR: Spectra) -> Spectra:
    axis: Spectra = np.linalg.eigh(column_NR.T @ column_NR.conj())[1][:, -1]
    return axis


def _without_phase(spectra_NRF: Spectra, common_RF: Spectra) -> Vectors:
    part_NF = (spectra_NRF * common_RF.conj()).sum(axis=1)
    phase_NF = part_NF / np.maximum(np.abs(part_NF), 1e-9)
    phase_NF[:, 0] = 1
    still = (spectra_NRF * phase_NF.conj()[:, None]).reshape(len(spectra_NRF), -1)
    return np.concatenate([still.real, still.imag], axis=1, dtype=np.float32)
