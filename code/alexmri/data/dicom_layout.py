"""How the images of a DICOM series lie, and the volume they make together."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexmri.data.slicing import NotAScanError
from alexmri.errors import UserError

MAX_FUNCTIONAL_GROUPS_BYTES = 16 << 20
MAX_FRAMES = 20_000
# Slices whose directions differ by less are parallel; places nearer than this (mm) are the same.
SAME_DIRECTION, SAME_PLACE = 0.02, 0.01
# Of the side of a pixel.
SAME_SIZE = 0.01
# Of the distance between slices; more is a missing slice.
MAX_UNEVENNESS = 0.1


class Frame(NamedTuple):
    """One image of a file: how it lies (LPS, mm), and how its values are meant."""

    file: int
    number: int
    order: tuple[float, ...]
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float
    slope: float
    intercept: float


def frames_of(header: Any, file: int) -> list[Frame]:
    """Return how the images of a file lie, from its functional groups where it has any."""
    count = int(header.get("NumberOfFrames") or 1)
    if not 0 < count <= MAX_FRAMES:
        raise UserError(f"it claims {count} images; 1 to {MAX_FRAMES:,} are read")
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        raw = header.get_item(name) if name in header else None
        value = getattr(raw, "value", None)
        if isinstance(value, bytes) and len(value) > MAX_FUNCTIONAL_GROUPS_BYTES:
            raise UserError(f"its {name} has {len(value) >> 20} MB")
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    offsets = header.get("GridFrameOffsetVector")
    frames = []
    for index in range(count):
        own = each[index] if index < len(each) else None

        def find(name: str, sequence: str, own: Any = own) -> Any:
            for item in (own, shared):
                group = (item.get(sequence) or [None])[0] if item is not None else None
                if group is not None and group.get(name) is not None:
                    return group.get(name)
            return header.get(name)

        orientation = _numbers(find("ImageOrientationPatient", "PlaneOrientationSequence"), 6)
        position = _numbers(find("ImagePositionPatient", "PlanePositionSequence"), 3)
        spacing = _numbers(find("PixelSpacing", "PixelMeasuresSequence"), 2)
        thickness = find("SpacingBetweenSlices", "PixelMeasuresSequence") or find(
            "SliceThickness", "PixelMeasuresSequence"
        )
        if not each and count > 1:
            position = _shifted(position, orientation, offsets, index)
        temporal = find("TemporalPositionIndex", "FrameContentSequence")
        frames.append(
            Frame(
                file,
                index,
                tuple(
                    float(value or 0)
                    for value in (
                        *(
                            header.get("AcquisitionNumber"),
                            find("EffectiveEchoTime", "MREchoSequence"),
                        ),
                        *(header.get("EchoTime"), temporal, header.get("InstanceNumber"), index),
                    )
                ),
                orientation,
                position,
                (abs(spacing[0]), abs(spacing[1])) if spacing and all(spacing) else None,
                abs(float(thickness or 0)) or 1.0,
                float(_or(find("RescaleSlope", "PixelValueTransformationSequence"), 1)),
                float(_or(find("RescaleIntercept", "PixelValueTransformationSequence"), 0)),
            )
        )
    return frames


def _or(value: Any, otherwise: float) -> Any:
    return otherwise if value is None or value == "" else value


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _shifted(
    position: tuple[float, ...] | None,
    orientation: tuple[float, ...] | None,
    offsets: Any,
    index: int,
) -> tuple[float, ...] | None:
    """Return the place of a frame that is told as a distance along the normal, if at all."""
    if position is None or orientation is None or not offsets or index >= len(offsets):
        return None
    moved = np.array(position) + (float(offsets[index]) - float(offsets[0])) * _normal(orientation)
    return tuple(moved.tolist())


def _normal(orientation: tuple[float, ...]) -> NDArray[np.float64]:
    return np.cross(orientation[:3], orientation[3:])


class Stack(NamedTuple):
    """The images of a volume in the order of their places, and where voxels (i, j, k) lie (RAS)."""

    frames: list[Frame]
    affine: NDArray[np.float64]
    is_uneven: bool
    notes: tuple[str, ...]


def stack(frames: list[Frame]) -> Stack:
    """Return the volume that images make, in the order of their places along their normal.

    Raises:
        NotAScanError: they lie in several directions, or have pixels of several sizes.
        UserError: their directions are none.
    """
    first = frames[0]
    if any(frame.spacing != first.spacing for frame in frames):
        sizes = np.array([frame.spacing or (1.0, 1.0) for frame in frames])
        if np.abs(sizes / sizes[0] - 1).max() > SAME_SIZE:
            raise NotAScanError("it holds images with pixels of several sizes (PixelSpacing)")
    # pixel (row, column): the second spacing is that between columns
    row_mm, column_mm = first.spacing or (1.0, 1.0)
    notes = [] if first.spacing else ["it does not say how large its pixels are; 1 mm is assumed"]
    if any(frame.orientation is None or frame.position is None for frame in frames):
        frames = sorted(frames, key=lambda frame: (frame.order[-2], frame.file, frame.number))
        # As if columns ran to the left and rows to the back, as those of an axial slice do.
        affine = np.diag([-column_mm, -row_mm, first.thickness, 1.0])
        notes.append("it does not say how it lies in the scanner; its images are taken as they are")
        return Stack(frames, affine, False, tuple(notes))
    orientation = np.array([frame.orientation for frame in frames])
    if np.abs(orientation - orientation[0]).max() > SAME_DIRECTION:
        raise NotAScanError("it holds slices in several directions, as localizers do")
    normal = _normal(first.orientation or ())
    if not (np.abs(np.linalg.norm(normal) - 1) < 0.1):
        raise UserError("it does not say how it lies in the scanner: its directions are not valid")
    places = np.array([frame.position for frame in frames]) @ normal
    by_place: list[tuple[float, Frame]] = []
    for place, frame in sorted(
        zip(places.tolist(), frames, strict=True), key=lambda pair: (pair[0], pair[1].order)
    ):
        if by_place and place - by_place[-1][0] < SAME_PLACE:
            if frame.order < by_place[-1][1].order:
                by_place[-1] = (by_place[-1][0], frame)
            continue
        by_place.append((place, frame))
    steps = np.diff([place for place, _ in by_place])
    step = float(np.median(steps)) if len(steps) else first.thickness
    is_uneven = bool(len(steps) and np.abs(steps - step).max() > MAX_UNEVENNESS * step)
    if len(by_place) < len(frames):
        notes.append(
            f"it holds {len(frames)} images in {len(by_place)} places; the first of each is used"
        )
    if is_uneven:
        notes.append("its slices are not evenly spaced: some seem to be missing")
    kept = [frame for _, frame in by_place]
    affine = np.eye(4)
    affine[:3, 0] = np.array((first.orientation or ())[:3]) * column_mm
    affine[:3, 1] = np.array((first.orientation or ())[3:]) * row_mm
    affine[:3, 2] = normal * step
    affine[:3, 3] = kept[0].position
    # DICOM counts to the left and back.
    return Stack(kept, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, is_uneven, tuple(notes))
