"""groups.csv: what a table says of each image, such as its subject, or its site and age."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alexmri.data.folders import ImageFile
from alexmri.errors import UserError

# What `alexmri slices` writes beside the class folders, with slices.json, is used unasked.
GROUPS_FILE = "groups.csv"
# What stands in a cell whose value is unknown, in small letters; n/a is BIDS's.
MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "?"})
# A column of more different numbers is a quantity, one of fewer a code, as in sex 0 and 1.
MAX_CODES = 6
# A column of more different texts names images or subjects, not groups of them.
MAX_SUBGROUPS = 50


@dataclass(frozen=True, slots=True)
class GroupsTable:
    """The rows of a table by the path they name, each of which names a subject too."""

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]

    def value(self, image: ImageFile, column: str) -> str:
        """Return the cell of an image, which a row names with or without its folder of a split."""
        row = self.rows.get(image.name) or self.rows.get(image.class_and_file)
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
        """Whether the values are numbers to cut, and no codes."""
        different = set(self.values.values())
        numbers = all(number_in(text) is not None for text in different)
        return numbers and (bool(self.bounds) or len(different) > MAX_CODES)


def parse_columns(text: str) -> tuple[Column, ...]:
    """Read columns and their bounds, as in `sex,site,age:65:80`.

    Raises:
        UserError: no column, the same one twice, or bounds that are no ascending numbers.
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
        UserError: there is no such table; a column is not there or empty, has bounds and other
            values than numbers, or more than MAX_SUBGROUPS different ones.
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
    cells = {image.name: table.value(image, name) for image in images}
    known = {image: cell for image, cell in cells.items() if cell.lower() not in MISSING}
    if not known:
        raise UserError(
            f"{table.path} has no value of '{name}' for any of the {len(images)} images; see that"
            " its paths are those of the images, or leave the column out of the subgroups"
        )
    found = Column(name, column.bounds, known)
    if found.is_quantity:
        return found
    different = sorted(set(known.values()))
    if column.bounds:
        wrong = next(each for each in different if number_in(each) is None)
        raise UserError(
            f"{table.path} has {wrong!r} as '{name}', which is not a number, so bounds"
            " cannot cut it; mend the cell, or leave the bounds out"
        )
    if len(different) > MAX_SUBGROUPS:
        raise UserError(
            f"{table.path} has {len(different)} different values of '{name}'; subgroups can be"
            f" {MAX_SUBGROUPS} at most, so put fewer names into the column"
        )
    return found


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
    """Return a CSV; rows without a path or a subject are left out.

    Raises:
        UserError: it cannot be read, or lacks one of these columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = tuple(reader.fieldnames or ())
            missing = {"path", "subject"} - set(columns)
            if missing:
                raise UserError(
                    f"groups_file {path} lacks the column '{sorted(missing)[0]}'; it needs the"
                    " columns path and subject"
                )
            rows = {
                row["path"].strip().replace("\\", "/").removeprefix("./"): {
                    name: row[name].strip() for name in columns
                }
                for row in reader
                if row["path"] and row["subject"]
            }
    except OSError as error:
        raise UserError(f"groups_file {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"groups_file {path} cannot be read as CSV in UTF-8: {error}") from None
    return GroupsTable(path, columns, rows)


def number_in(text: str) -> float | None:
    """Return a finite number, None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
