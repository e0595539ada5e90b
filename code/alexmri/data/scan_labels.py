"""Whose scan it is and of which class: by BIDS names, a table of labels, tags and folders."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alexmri.contract.inputs import SPLIT_NAMES
from alexmri.data.find_scans import Scan, hashed
from alexmri.data.subjects import SCHEMES
from alexmri.errors import UserError
from alexmri.terminal import number_of

BIDS_SUBJECT = re.compile(r"(?:^|[/_])sub-([A-Za-z0-9]+)")
# Columns that name a scan and do not tell two scans of one subject from those of two.
SCAN_COLUMNS = (
    *("image data id", "image_id", "image id", "imageuid", "mri id", "mri_id", "session_id"),
    *("scan_id", "filename", "file"),
)
SUBJECT_COLUMNS = ("participant_id", "subject", "subject_id", "subject id", "ptid", "patientid")
# Columns that name a scan or its subject, the first found wins: BIDS, ADNI, OASIS, others.
ID_COLUMNS = ("participant_id", *SCAN_COLUMNS, "id", *SUBJECT_COLUMNS[1:])
# What groups.csv carries for subgroups, and what other tables call it.
CARRIED = {
    "age": ("age", "age_at_scan", "age at visit"),
    "sex": ("sex", "gender", "m/f"),
    "scanner": ("scanner", "scanner_model", "manufacturer"),
    "site": ("site", "site_id", "siteid"),
}
# What stands in PatientID where a name was taken out; it tells nobody from anybody.
NOBODY = re.compile(r"|0+|anon\w*|anonymi[sz]ed|unknown|none|removed|xxx+", re.IGNORECASE)
# How a subject is named of whom nothing is known but a DICOM study, which may be one of several.
STUDY = "study-"
CLASS_NAME = re.compile(r"[\w][\w .,()+-]{0,99}")
# Names up to so many characters may stand in other names by chance.
SHORT_NAME = 5
TOKEN = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A scan with its class, its subject (None where nobody tells) and the columns carried.

    `split` is the folder train, validation or test, or another name of theirs, that it came in.
    """

    scan: Scan
    label: str
    subject: str | None
    carried: Mapping[str, str] = field(default_factory=dict)
    split: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of labels: key -> its rows, with the names of its columns in lower case.

    `title` is the column of the labels as its file spells it.
    """

    path: Path
    rows: Mapping[str, Sequence[Mapping[str, str]]]
    id_column: str
    label_column: str
    mapping: Mapping[str, str]
    title: str

    def label(self, row: Mapping[str, str]) -> str | None:
        """Return the class of a row, None where it has none or the mapping leaves it out.

        Raises:
            UserError: the value is no name of a folder.
        """
        value = row[self.label_column]
        if self.mapping:
            return next((name for key, name in self.mapping.items() if _equal(key, value)), None)
        if value and not CLASS_NAME.fullmatch(value):
            raise UserError(
                f"{self.path} has {value!r} as {self.title}, which cannot be a folder's"
                f" name; name the classes by --label-map '{value}=NAME,…'"
            )
        return value or None


def read_table(
    path: Path, *, label_column: str, id_column: str | None, mapping: Mapping[str, str]
) -> Table:
    """Return a CSV or TSV file.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = max("\t,;", key=head.count)
        lines = list(csv.reader(text.splitlines(), delimiter=delimiter))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8: {error}") from None
    names = [name.strip() for name in lines[0]] if lines else []
    lower = [name.lower() for name in names]
    for wanted in filter(None, (label_column, id_column)):
        if wanted.lower() not in lower:
            raise UserError(f"{path} has no column '{wanted}'; it has {', '.join(names) or 'none'}")
    key = (id_column or next((name for name in ID_COLUMNS if name in lower), "")).lower()
    if not key:
        raise UserError(
            f"{path} has no column that names the scans ({', '.join(names)}); name one by"
            " --id-column"
        )
    rows: dict[str, list[Mapping[str, str]]] = {}
    for line in lines[1:]:
        row = dict(zip(lower, (*(cell.strip() for cell in line), *[""] * len(lower)), strict=False))
        if row[key]:
            rows.setdefault(row[key], []).append(row)
    return Table(path, rows, key, label_column.lower(), mapping, label_column)


def label_scans(
    scans: Sequence[Scan], *, table: Table | None, salt: str
) -> tuple[list[Labelled], list[str]]:
    """Return the scans that have a class, with their subjects, and what is left out.

    A subject is that of a BIDS name (`sub-01`), else of the table, else the PatientID, hashed, else
    that of a file name of OASIS or ADNI, else the study of a DICOM series.

    Raises:
        UserError: a scan without a class folder, rows or names that contradict one another, or one
            patient under the names of two subjects.
    """
    labelled: list[Labelled] = []
    patients: dict[str, tuple[str, str]] = {}
    left_out: Counter[str] = Counter()
    for scan in scans:
        row = _row_of(scan, table) if table else None
        if table and row is None:
            left_out[f"{table.path.name} has no row"] += 1
            continue
        split, top = _top_folders(scan)
        label = table.label(row) if table and row is not None else _class_of(scan, top)
        if label is None and table and row is not None:
            value = row[table.label_column]
            left_out[f"{table.title} is {repr(value) if value else 'empty'}"] += 1
            continue
        subject = _subject(scan, table, row, salt)
        patient = scan.identity.patient if scan.identity else ""
        if subject and not NOBODY.fullmatch(patient):
            other, name = patients.setdefault(patient, (subject, scan.name))
            if other != subject:
                raise UserError(
                    f"{name} and {scan.name} have the same PatientID, and their names say that they"
                    f" are of two subjects, {other} and {subject}; correct one of them"
                )
        carried = {
            name: value
            for name, columns in CARRIED.items()
            if row and (value := next((row[c] for c in columns if row.get(c)), ""))
        }
        labelled.append(Labelled(scan, label or "", subject, carried, split))
    return labelled, [
        f"{number_of(count, 'scan')} for which {why}" for why, count in sorted(left_out.items())
    ]


def _row_of(scan: Scan, table: Table) -> Mapping[str, str] | None:
    """Return the row whose key stands in the path of a scan, or is its PatientID."""
    found = {name for name in _names_in(scan.name) if name in table.rows}
    found |= {key for name in found if (key := f"sub-{name}") in table.rows}
    if scan.identity and scan.identity.patient in table.rows:
        found.add(scan.identity.patient)
    if not found:
        return None
    longest = max(map(len, found))
    keys = sorted(key for key in found if len(key) == longest)
    rows = [row for key in keys for row in table.rows[key]]
    labels = sorted({str(table.label(row)) for row in rows})
    if len(labels) > 1:
        raise UserError(
            f"{table.path} has several rows for {scan.name} (by {table.id_column}), which say"
            f" {labels[0]} and {labels[1]}; name the column that tells scans apart by --id-column"
        )
    return rows[0]


def _names_in(path: str) -> Iterator[str]:
    """Yield what may be the name of a scan in a path: whole words, also several with what joins."""
    for part in path.split("/"):
        words = list(TOKEN.finditer(part))[:40]
        for i, first in enumerate(words):
            for last in words[i : i + 12]:
                yield part[first.start() : last.end()]


def _top_folders(scan: Scan) -> tuple[str, str]:
    """Return the folder of its split, if any, and the first folder below that; empty where none.

    Raises:
        UserError: the files of a series lie in several of them.
    """
    root = scan.paths[0].parents[scan.name.count("/")]
    found: dict[tuple[str, str], str] = {}
    for path in scan.paths:
        name = path.relative_to(root).as_posix()
        split, slash, rest = name.partition("/")
        if not slash or split.lower() not in SPLIT_NAMES:
            split, rest = "", name
        folder, slash, _ = rest.partition("/")
        found.setdefault((split, folder if slash else ""), name)
    if len(found) > 1:
        first, second, *_ = found.values()
        raise UserError(
            f"{first} and {second} belong to one series (SeriesInstanceUID); keep it in one folder"
        )
    return next(iter(found))


def _class_of(scan: Scan, folder: str) -> str:
    if BIDS_SUBJECT.match(folder):
        raise UserError(
            f"{folder} names a subject and no class (BIDS); name the classes by --labels"
            " participants.tsv --label-column COLUMN"
        )
    if not folder:
        raise UserError(
            f"{scan.name} is in no class folder; put the scans into a folder per class, or name the"
            " classes by --labels FILE --label-column COLUMN"
        )
    return folder


def _subject(
    scan: Scan, table: Table | None, row: Mapping[str, str] | None, salt: str
) -> str | None:
    named = sorted(set(BIDS_SUBJECT.findall(scan.name)))
    if len(named) > 1:
        raise UserError(
            f"{scan.name} names two subjects, sub-{named[0]} and sub-{named[1]}; rename it"
        )
    patient = scan.identity.patient if scan.identity else ""
    in_table = _subject_of_row(table, row) if table and row else None
    shown = f"patient-{hashed(patient, salt)}" if in_table == patient else in_table
    if named and in_table and not _may_be_same(named[0], in_table):
        raise UserError(
            f"{scan.name} is of sub-{named[0]} by its name, and of {shown} by"
            f" {table.path if table else 'the table'}; correct one of them"
        )
    if named:
        return f"sub-{named[0]}"
    if in_table:
        return shown
    if not NOBODY.fullmatch(patient):
        return f"patient-{hashed(patient, salt)}"
    if not (subject := _by_pattern(scan.name)) and scan.identity and scan.identity.study:
        return f"{STUDY}{hashed(scan.identity.study, salt)}"
    return subject


def _subject_of_row(table: Table, row: Mapping[str, str]) -> str | None:
    value = next((row[name] for name in SUBJECT_COLUMNS if row.get(name)), row[table.id_column])
    # OAS1_0001_MR1 is a session of the subject OAS1_0001.
    if subject := _by_pattern(value):
        return subject
    return None if table.id_column in SCAN_COLUMNS and value == row[table.id_column] else value


def _by_pattern(name: str) -> str | None:
    """Return the subject in a name of OASIS or ADNI."""
    for scheme in SCHEMES[:2]:
        if match := scheme.pattern.fullmatch(name):
            return match["subject"]
    return None


def _may_be_same(first: str, second: str) -> bool:
    """Whether two names may be of one subject: BIDS allows letters and digits only."""
    a, b = ("".join(TOKEN.findall(name)).lower().removeprefix("sub") for name in (first, second))
    return a == b or (min(len(a), len(b)) > SHORT_NAME and (a in b or b in a))


def _equal(key: str, value: str) -> bool:
    try:
        return key == value or float(key) == float(value)
    except ValueError:
        return False
