"""Tell which images show the same person, from file names, a regular expression or a CSV."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexmri.data.folders import ImageFile
from alexmri.errors import UserError

# Patterns of file names (without suffix) that carry a person. `per_class` numbers start again in
# every class folder, the others name a person of the whole study.
_KAGGLE = re.compile(r"\d+(?: \((?P<subject>\d+)\))?")
_ROBOFLOW = re.compile(r"\d+(?:-(?P<subject>\d+)-)?_(?:jpe?g|png)\.rf\.[0-9a-zA-Z]+")
_OASIS = re.compile(r".*?(?P<subject>OAS\d_\d+)(?![0-9]).*")
_ADNI = re.compile(r".*?(?P<subject>\d{3}_S_\d{4,})(?![0-9]).*")


@dataclass(frozen=True, slots=True)
class Subjects:
    """The person in each image (same order as the images) and how that was told.

    Not `believed` is what pixels tell with too little confidence.
    """

    ids: tuple[str, ...]
    found_by: str
    believed: bool = True

    @property
    def count(self) -> int:
        return len(set(self.ids))


def find_subjects(
    images: Sequence[ImageFile], root: Path, *, regex: str | None, csv_file: str | None
) -> Subjects | None:
    """Return who is in each image: by CSV if given, else by regex if given, else by file names.

    Returns None where neither is given and the names of the images follow no known pattern.

    Raises:
        UserError: an unreadable CSV or regex, or images for which they name nobody.
    """
    if csv_file:
        return _by_csv(images, root, csv_file)
    if regex:
        return _by_regex(images, regex)
    return _by_name(images)


def _by_name(images: Sequence[ImageFile]) -> Subjects | None:
    schemes: list[tuple[str, re.Pattern[str], bool]] = [
        ("OASIS file names", _OASIS, False),
        ("ADNI file names", _ADNI, False),
        ("Roboflow file names", _ROBOFLOW, True),
        ("Kaggle file names", _KAGGLE, True),
    ]
    for title, pattern, per_class in schemes:
        subjects = _match_all(images, pattern, per_class)
        if subjects and _plausible(images, subjects, pattern):
            return Subjects(tuple(subjects), title)
    return None


def _match_all(
    images: Sequence[ImageFile], pattern: re.Pattern[str], per_class: bool
) -> list[str] | None:
    subjects: list[str] = []
    for image in images:
        match = pattern.fullmatch(Path(image.name).stem)
        if match is None:
            return None
        # The bare name `26.jpg` beside `26 (2).jpg` is one more person, number 1.
        person = match["subject"] or "1"
        subjects.append(f"{image.label}/{person}" if per_class else person)
    return subjects


def _plausible(
    images: Sequence[ImageFile], subjects: Sequence[str], pattern: re.Pattern[str]
) -> bool:
    """Refuse names that match by chance.

    `1 (1).jpg … 1 (900).jpg`, one image a person, is a renamed folder. And a name without a
    person counts only beside names with one: `1.jpg … 900.jpg` tells nothing.
    """
    people = len(set(subjects))
    if people < 2 or (pattern is _KAGGLE and people == len(images)):
        return False
    named = [image for image in images if _has_person(pattern, image)]
    return len(named) >= len(images) / 2 and {i.label for i in named} == {i.label for i in images}


def _has_person(pattern: re.Pattern[str], image: ImageFile) -> bool:
    match = pattern.fullmatch(Path(image.name).stem)
    return match is not None and match["subject"] is not None


def _by_regex(images: Sequence[ImageFile], regex: str) -> Subjects:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"group_regex {regex!r} is no regular expression: {error}") from None
    if not pattern.groups:
        raise UserError(
            f"group_regex {regex!r} has no capture group; put the part of CLASS/NAME that names"
            r" the person into parentheses, for example '(OAS1_\d+)'"
        )

    def person(image: ImageFile) -> str | None:
        match = pattern.search(image.class_and_file)
        return "/".join(part for part in match.groups() if part) if match else None

    return _for_each(images, person, f"group_regex {regex!r}")


def _by_csv(images: Sequence[ImageFile], root: Path, csv_file: str) -> Subjects:
    path = next((p for p in (Path(csv_file), root / csv_file) if p.is_file()), None)
    if path is None:
        raise UserError(f"groups_file {csv_file} is neither here nor in {root}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"path", "subject"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(
                    f"groups_file {path} lacks the column '{sorted(missing)[0]}'; it needs the"
                    " columns path and subject"
                )
            people = {
                row["path"].strip().replace("\\", "/").removeprefix("./"): row["subject"].strip()
                for row in reader
                if row["path"] and row["subject"]
            }
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"groups_file {path} cannot be read as CSV in UTF-8: {error}") from None

    def person(image: ImageFile) -> str | None:
        return people.get(image.name) or people.get(image.class_and_file)

    return _for_each(images, person, f"groups_file {path.name}")


def _for_each(
    images: Sequence[ImageFile], person: Callable[[ImageFile], str | None], source: str
) -> Subjects:
    subjects = [person(image) for image in images]
    unknown = [i.name for i, subject in zip(images, subjects, strict=True) if not subject]
    if unknown:
        raise UserError(
            f"{source} names no person for {len(unknown)} of {len(images)} images,"
            f" the first being {unknown[0]}"
        )
    return Subjects(tuple(subject for subject in subjects if subject), source)
