"""Turn voxels with an affine into a volume in canonical orientation."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from alexmri.data.slicing import Volume
from alexmri.errors import UserError

# Of one volume, as float32 in 1 GB: a head has 7 million voxels of 1 mm, and 60 million of 0.5 mm.
MAX_VOXELS = 256_000_000

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
    interpolated, so an oblique scan stays oblique. `uneven` is about the last axis.

    Raises:
        UserError: the affine is none.
    """
    # 0.2 s that serving images does not pay
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import apply_orientation, io_orientation

    broken = UserError("its header does not say how it lies in the scanner: its axes are no axes")
    if not np.isfinite(affine).all() or np.abs(affine[:3, :3]).max() > 1e6:
        raise broken
    sizes = voxel_sizes(affine)
    if not (sizes > 1e-6).all():
        raise broken
    # Of unit vectors, or a thin voxel would look degenerate.
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise broken
    to_ras = io_orientation(affine)
    spacing = np.empty(3)
    spacing[to_ras[:, 0].astype(int)] = sizes
    return Volume(
        apply_orientation(voxels_IJK, to_ras),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        uneven=int(to_ras[2, 0]) if uneven else None,
        notes=notes,
    )


def refuse_strange(voxels: NDArray[np.float32]) -> None:
    """Refuse voxels that are no numbers.

    Raises:
        UserError: some are not.
    """
    strange = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if strange:
        raise UserError(
            f"{strange} of its {voxels.size} voxels are no finite numbers (NaN or infinite);"
            " replace them, for example by 0"
        )
