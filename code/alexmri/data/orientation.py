"""Turn voxels with an affine into a volume in canonical orientation."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from alexmri.data.slicing import Volume
from alexmri.errors import UserError

# Of one volume, as float32 in 1 GB: a head has 7 million voxels of 1 mm, and 60 million of 0.5 mm.
MAX_VOXELS = 256_000_000
# A head fills 8 % of a volume of 256 voxels a side; all else may be NaN.
MIN_FINITE = 0.01
NO_AXES = "its header does not say how it lies in the scanner: its axes are not valid"

Admit = Callable[[int, int, int], None]


def canonical(
    voxels_IJK: NDArray[np.float32],
    affine: NDArray[np.float64],
    notes: tuple[str, ...] = (),
    *,
    uneven: bool = False,
) -> Volume:
    """Return a volume whose axes run to the subject's right, front and head, as nearly as can be.

    `affine` (4, 4) takes indices to millimetres (RAS). Axes are swapped and reversed; nothing is
    interpolated, so an oblique scan stays oblique. `uneven` is about the last axis. Voxels that are
    no finite numbers become 0, in `voxels_IJK` too.

    Raises:
        UserError: the affine is none, or nearly no voxel is a finite number.
    """
    # 0.2 s that serving images does not pay
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import apply_orientation, io_orientation

    if not np.isfinite(affine).all() or np.abs(affine[:3, :3]).max() > 1e6:
        raise UserError(NO_AXES)
    sizes = voxel_sizes(affine)
    if not (sizes > 1e-6).all():
        raise UserError(NO_AXES)
    # Of unit vectors, or a thin voxel would look degenerate.
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise UserError(NO_AXES)
    notes += _fill(voxels_IJK)
    to_ras = io_orientation(affine)
    spacing = np.empty(3)
    spacing[to_ras[:, 0].astype(int)] = sizes
    return Volume(
        apply_orientation(voxels_IJK, to_ras),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        uneven=int(to_ras[2, 0]) if uneven else None,
        notes=notes,
    )


def _fill(voxels: NDArray[np.float32]) -> tuple[str, ...]:
    """Put 0 where voxels are not finite numbers, as nilearn does, and return what to say."""
    finite = np.isfinite(voxels)
    count = int(np.count_nonzero(finite))
    if count == voxels.size:
        return ()
    if count < MIN_FINITE * voxels.size:
        raise UserError(
            f"{voxels.size - count} of its {voxels.size} voxels are not finite numbers (NaN or"
            " infinite)"
        )
    voxels[~finite] = 0
    return ("some of its voxels are not finite numbers (NaN or infinite); they count as 0",)
