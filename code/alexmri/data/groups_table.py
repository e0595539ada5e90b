"""groups.csv: what a table says of each image, such as its subject, or its site and age."""

import csv
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alexmri.data.folders import ImageFile
from alexmri.errors import UserError
from alexmri.terminal import first_few

# What `alexmri slices` writes beside the class folders, with slices.json, is used unasked.
GROUPS_FILE = "groups.csv"
# What stands in a cell whose value is unknown, in small letters; n/a is BIDS's.
MISSING = frozenset(
    {
        *("", "na", "n/a", "nan", "none", "null", "?"),
        *("unknown", "unk", "missing", "-", "."),
    }
)
# The subgroup of subjects whose images have different values; no cell may be called so.
SEVERAL = "several values"
# A column of more different numbers is a quantity, one of fewer a code, as in sex 0 and 1.
MAX_CODES = 6
# A column of more different texts names images or subjects, not groups of them.
MAX_SUBGROUPS = 50


@dataclass(frozen=True, slots=True)
class GroupsTable:
    """The rows of a table by the path they name, in one spelling; a subject may be empty."""

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]

    def value(self, image: ImageFile, column: str) -> str:
        """Return the cell of an image, which a row names with or without its folder of a split."""
        names = (unicodedata.normalize("NFC", n) for n in (image.name, image.class_and_file))
        row = next((self.rows[name] for name in names if name in self.rows), None)
        return row[column] if row else ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column to measure subgroups by.

    Numbers are cut at `bounds` (ascending), or where these are left out at quantiles. `values` are
    the cells by the names of images, without those that are missing.
    """

    name: str
    bounds: tuple[float, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_quantity(self) -> bool:
        """Whether the values are numbers to cut instead of codes."""
        different = set(self.values.values())
        numbers = all(number_in(text) is not None for text in different)
        return numbers and (bool(self.bounds) or len(different) > MAX_CODES)


def parse_columns(text: str) -> tuple[Column, ...]:
    """Read columns and their bounds, as in `sex,site,age:65:80`.

    Raises:
        UserError: no column, the same one twice, or bounds that are not ascending numbers.
    """
    columns: list[Column] = []
    for part in text.split(","):
        name, *bounds = (each.strip() for each in part.split(":"))
        numbers = [number_in(each) for each in bounds]
        known = [each for each in numbers if each is not None]
        if not name or len(known) < len(numbers) or known != sorted(set(known)):
            raise UserError(
                f"subgroups have {part.strip()!r}; name columns of {GROUPS_FILE}, and for numbers"
                " ascending bounds if you like, as in sex,age:65:80"
            )
        if name in {column.name for column in columns}:
            raise UserError(f"subgroups name the column '{name}' twice; name it once")
        columns.append(Column(name, tuple(known)))
    return tuple(columns)


def read_columns(
    columns: Sequence[Column], images: Sequence[ImageFile], root: Path, csv_file: str | None
) -> tuple[Column, ...]:
    """Return the columns with the values that a table, groups.csv by default, has for the images.

    Raises:
        UserError: there is no such table; a column is not there or empty, has values that are no
            numbers beside bounds or many numbers, or more than MAX_SUBGROUPS different ones.
    """
    if csv_file is None and not (root / GROUPS_FILE).is_file():
        raise UserError(
            f"subgroups are columns of {GROUPS_FILE}, which is not in {root}; write one with the"
            " columns path, subject and those of the subgroups, a row for each image"
        )
    table = read_table(find_table(root, csv_file or str(root / GROUPS_FILE)))
    return tuple(_read(column, images, table) for column in columns)


def _read(column: Column, images: Sequence[ImageFile], table: GroupsTable) -> Column:
    name = column.name
    if name not in table.columns:
        there = ", ".join(each for each in table.columns if each not in ("path", "subject"))
        raise UserError(
            f"{table.path} has no column '{name}' for subgroups; beside path and subject it has"
            f" {there or 'none'}"
        )
    known = _known({image.name: table.value(image, name) for image in images})
    if not known:
        raise UserError(
            f"{table.path} has no value of '{name}' for any of the {len(images)} images: its first"
            f" path is {next(iter(table.rows), '')!r}, that of the images"
            f" {images[0].class_and_file!r}; make its paths those of the images, or leave the"
            " column out of the subgroups"
        )
    if SEVERAL in known.values():
        raise UserError(
            f"{table.path} has {SEVERAL!r} as '{name}', which is how subjects are called whose"
            " images have different values; write each image's own, or leave the cell empty"
        )
    found = Column(name, column.bounds, known)
    if found.is_quantity:
        return found
    different = sorted(set(known.values()))
    wrong = [cell for cell in different if number_in(cell) is None]
    numbers = sum(number_in(cell) is not None for cell in known.values())
    if column.bounds or (len(different) > MAX_CODES and 2 * numbers > len(known)):
        mend = "leave the bounds out" if column.bounds else "put a letter before all that are codes"
        raise UserError(
            f"{table.path} has cells of '{name}' that are not numbers:"
            f" {first_few([repr(cell) for cell in wrong])}; write numbers, leave the cells empty,"
            f" or {mend}"
        )
    if len(different) > MAX_SUBGROUPS:
        raise UserError(
            f"{table.path} has {len(different)} different values of '{name}'; subgroups can be"
            f" {MAX_SUBGROUPS} at most, so put fewer names into the column"
        )
    return found


def _known(cells: Mapping[str, str]) -> dict[str, str]:
    """Return the cells that are not missing; equal numbers as 0 and 0.0 are spelt as the first."""
    first: dict[float | str, str] = {}
    known = {image: cell for image, cell in cells.items() if cell.lower() not in MISSING}
    for cell in known.values():
        first.setdefault(_key(cell), cell)
    return {image: first[_key(cell)] for image, cell in known.items()}


def _key(cell: str) -> float | str:
    number = number_in(cell)
    return cell if number is None else number


def find_table(root: Path, csv_file: str) -> Path:
    """Return the path of the table, which may be given from here or from the data folder.

    Raises:
        UserError: it is in neither.
    """
    path = next((p for p in (Path(csv_file), root / csv_file) if p.is_file()), None)
    if path is None:
        raise UserError(f"groups_file {csv_file} is neither in the current folder nor in {root}")
    return path


def read_table(path: Path) -> GroupsTable:
    """Return a CSV; rows without a path are left out.

    Raises:
        UserError: it cannot be read, lacks the column path or subject, has a column twice, or rows
            of one path that differ.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = tuple(name.strip() for name in reader.fieldnames or ())
            _require_columns(path, columns)
            reader.fieldnames = columns
            for cells in reader:
                row = {name: cells[name].strip() for name in columns}
                row["path"] = _one_spelling(row["path"])
                if row["path"]:
                    _require_same(path, rows.setdefault(row["path"], row), row)
    except OSError as error:
        raise UserError(f"groups_file {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"groups_file {path} cannot be read as CSV in UTF-8: {error}") from None
    return GroupsTable(path, columns, rows)


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise UserError(f"groups_file {path} has the column '{twice[0]}' twice; rename one of them")
    missing = sorted({"path", "subject"} - set(columns))
    if missing:
        separated = any(mark in name for name in columns for mark in ";\t")
        raise UserError(
            f"groups_file {path} lacks the column '{missing[0]}'; it needs the columns path and"
            f" subject{', separated by commas' if missing[0] == 'path' and separated else ''}"
        )


def _require_same(path: Path, before: Mapping[str, str], row: Mapping[str, str]) -> None:
    differs = next((column for column in row if row[column] != before[column]), None)
    if differs is not None:
        raise UserError(
            f"groups_file {path} has rows for {row['path']} that differ in '{differs}':"
            f" {before[differs]!r} and {row[differs]!r}; keep the one that is right"
        )


def _one_spelling(path: str) -> str:
    """Return a path of a table as an image is named, in Unicode NFC without a leading ./ or /."""
    slashes = unicodedata.normalize("NFC", path).replace("\\", "/")
    return re.sub(r"^(\.?/)+", "", slashes)


def number_in(text: str) -> float | None:
    """Return a finite number, None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
