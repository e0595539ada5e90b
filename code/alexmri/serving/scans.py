"""Scans in a request: each becomes the slices that `alexmri slices` would have cut of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from alexmri.data.pixels import Pixels
from alexmri.data.scans import group, is_scan, read_scan
from alexmri.data.slicing import Slicing, cut, eight_bit
from alexmri.errors import UserError
from alexmri.serving.arrays import check_count
from alexmri.serving.decode import MAX_SECONDS, PixelBudget
from alexmri.serving.records import Record
from alexmri.serving.request_error import RequestError, unreadable


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Which file of a request an image is from, and which slice of it, where that is a scan."""

    file: int
    plane: str | None = None
    index: int | None = None
    position_mm: float | None = None
    pixels_HW: Pixels | None = None
    notes: tuple[str, ...] = ()


def expand(
    records: Sequence[Record], budget: PixelBudget, slicing: Slicing
) -> tuple[list[Record], list[Source]]:
    """Return the records with every scan replaced by its slices, or by its error.

    DICOM files of one series are one scan, in the place of its first file. The second list says
    where each record is from; it is empty where no record is a scan.

    Raises:
        RequestError: 413 too many slices, 503 too late.
    """
    scans = {i: r for i, r in enumerate(records) if isinstance(r, bytes) and is_scan(r)}
    if not scans:
        return list(records), []
    numbers, files = list(scans), list(scans.values())
    starts = {
        numbers[members[0]]: [files[i] for i in members]
        for members in group(files, budget.check_time, budget.be_alone)
    }
    later = set(scans) - set(starts)
    expanded: list[Record] = []
    sources: list[Source] = []
    for number, record in enumerate(records):
        if number in later:
            continue
        if number not in starts:
            expanded.append(record)
            sources.append(Source(number))
            continue
        for part, source in _slices(number, starts[number], budget, slicing):
            expanded.append(part)
            sources.append(source)
        check_count(len(expanded))
    return expanded, sources


def _slices(
    number: int, files: Sequence[bytes], budget: PixelBudget, slicing: Slicing
) -> list[tuple[Record, Source]]:
    try:
        volume = read_scan(
            files,
            voi=slicing.intensity == "voi",
            admit=budget.take_volume,
            check=budget.check_time,
            seconds=MAX_SECONDS,
        )
        slices = cut(volume, slicing)
    except UserError as error:
        return [(unreadable(f"the scan cannot be used: {error}"), Source(number))]
    except RequestError as error:
        return [(error, Source(number))]
    found: list[tuple[Record, Source]] = []
    for each in slices:
        pixels_HW = eight_bit(each.pixels_HW)
        place = (slicing.plane, each.index, each.position_mm)
        found.append((pixels_HW, Source(number, *place, pixels_HW, volume.notes)))
    return found
