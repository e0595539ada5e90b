"""Tell which images show the same subject, from file names, a regular expression or a CSV."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexmri.data.folders import ImageFile
from alexmri.data.groups_table import GROUPS_FILE, find_table, read_table
from alexmri.data.slicing import SLICES
from alexmri.errors import UserError
from alexmri.terminal import first_few

# From this share of fitting names on, the others are strays; below it the pattern is not believed.
MIN_FITTING_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Scheme:
    """A pattern of file names (without suffix) that carry a subject.

    Numbers that are `per_class` start again in every class folder; others name a subject of the
    whole study.
    """

    title: str
    pattern: re.Pattern[str]
    per_class: bool

    def subject(self, image: ImageFile) -> str | None:
        """Return the subject on `image`, None where its name does not fit."""
        match = self.pattern.fullmatch(Path(image.name).stem)
        if match is None:
            return None
        # The bare name `26.jpg` beside `26 (2).jpg` is one more subject, number 1.
        number = match["subject"] or "1"
        return f"{image.label}/{number}" if self.per_class else number

    def names_a_subject(self, image: ImageFile) -> bool:
        match = self.pattern.fullmatch(Path(image.name).stem)
        return match is not None and match["subject"] is not None


KAGGLE = Scheme("Kaggle file names", re.compile(r"\d+(?: \((?P<subject>\d+)\))?"), True)
SCHEMES = (
    Scheme("OASIS file names", re.compile(r".*?(?P<subject>OAS\d_\d+)(?![0-9]).*"), False),
    Scheme("ADNI file names", re.compile(r".*?(?P<subject>\d{3}_S_\d{4,})(?![0-9]).*"), False),
    Scheme(
        "Roboflow file names",
        re.compile(r"\d+(?:-(?P<subject>\d+)-)?_(?:jpe?g|png)\.rf\.[0-9a-zA-Z]+"),
        True,
    ),
    KAGGLE,
)


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subject on each image (same order as the images) and how that was found.

    Not `believed` is what pixels tell with too little confidence. `strays` are the images whose
    names do not fit the pattern of all others: each of them stands as a subject of its own.
    """

    ids: tuple[str, ...]
    found_by: str
    believed: bool = True
    strays: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(set(self.ids))


def find_subjects(
    images: Sequence[ImageFile], root: Path, *, regex: str | None, csv_file: str | None
) -> Subjects | None:
    """Return who is on each image: by CSV if given, by regex if given, by groups.csv, or by names.

    Returns None where neither is given and the names of the images follow no known pattern. A few
    names that do not fit it are strays. A stray with the same bytes as another image shows the
    same subject.

    Raises:
        UserError: an unreadable CSV or regex, or images for which they name nobody.
    """
    if csv_file:
        return _by_csv(images, root, csv_file)
    if regex:
        return _by_regex(images, regex)
    if (root / GROUPS_FILE).is_file() and (root / SLICES).is_file():
        return _by_csv(images, root, str(root / GROUPS_FILE))
    return _by_name(images)


def misfits(images: Sequence[ImageFile]) -> tuple[str, list[str]] | None:
    """Return the scheme that most file names fit, and the names that do not fit it."""
    fitting = {scheme: sum(map(scheme.names_a_subject, images)) for scheme in SCHEMES}
    best = max(SCHEMES, key=lambda scheme: fitting[scheme])
    if 2 * fitting[best] < len(images):
        return None
    return best.title, [image.name for image in images if best.subject(image) is None]


def _by_name(images: Sequence[ImageFile]) -> Subjects | None:
    for scheme in SCHEMES:
        found = [scheme.subject(image) for image in images]
        strays = [i for i, subject in enumerate(found) if subject is None]
        if len(strays) > (1 - MIN_FITTING_SHARE) * len(images):
            continue
        if _plausible(images, [subject for subject in found if subject], scheme):
            return _with_strays(images, found, strays, scheme.title)
    return None


def _with_strays(
    images: Sequence[ImageFile],
    found: Sequence[str | None],
    strays: Sequence[int],
    title: str,
) -> Subjects:
    """Give each stray the subject of an image with the same bytes, or one of its own."""
    known = _by_bytes(images, found, strays) if strays else {}
    ids = [subject or known.get(i) or f"stray/{images[i].name}" for i, subject in enumerate(found)]
    unknown = tuple(images[i].name for i in strays if i not in known)
    return Subjects(tuple(ids), title, strays=unknown)


def _by_bytes(
    images: Sequence[ImageFile], found: Sequence[str | None], strays: Sequence[int]
) -> dict[int, str]:
    """Return the subject of each stray that is a copy of an image whose subject is known."""
    sizes = {i: _size(images[i].path) for i in range(len(images))}
    wanted = {sizes[i] for i in strays} - {0}
    subject_of: dict[str, str] = {}
    for i, subject in enumerate(found):
        if subject and sizes[i] in wanted and (digest := _digest(images[i].path)):
            subject_of.setdefault(digest, subject)
    copies = {i: subject_of.get(_digest(images[i].path)) for i in strays if sizes[i] in wanted}
    return {i: subject for i, subject in copies.items() if subject}


def _size(path: Path) -> int:
    """Return the size of a regular file, 0 for anything else."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _plausible(images: Sequence[ImageFile], subjects: Sequence[str], scheme: Scheme) -> bool:
    """Refuse names that match by chance.

    `1 (1).jpg … 1 (900).jpg`, one image a subject, is a renamed folder. And a name without a
    subject counts only beside names with one: `1.jpg … 900.jpg` tells nothing.
    """
    count = len(set(subjects))
    if count < 2 or (scheme is KAGGLE and count == len(subjects)):
        return False
    named = [image for image in images if scheme.names_a_subject(image)]
    return len(named) >= len(images) / 2 and {i.label for i in named} == {i.label for i in images}


def _by_regex(images: Sequence[ImageFile], regex: str) -> Subjects:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"group_regex {regex!r} is not a regular expression: {error}") from None
    if not pattern.groups:
        raise UserError(
            f"group_regex {regex!r} has no capture group; put the part of CLASS/NAME that names"
            r" the subject into parentheses, for example '(OAS1_\d+)'"
        )

    def subject(image: ImageFile) -> str | None:
        match = pattern.search(image.class_and_file)
        return "/".join(part for part in match.groups() if part) if match else None

    return _for_each(images, subject, f"group_regex {regex!r}")


def _by_csv(images: Sequence[ImageFile], root: Path, csv_file: str) -> Subjects:
    table = read_table(find_table(root, csv_file))
    source = f"groups_file {table.path.name}"
    return _for_each(images, lambda image: table.value(image, "subject"), source)


def _for_each(
    images: Sequence[ImageFile], subject: Callable[[ImageFile], str | None], source: str
) -> Subjects:
    subjects = [subject(image) for image in images]
    unknown = [i.name for i, found in zip(images, subjects, strict=True) if not found]
    if unknown:
        raise UserError(
            f"{source} names no subject for {len(unknown)} of {len(images)} images,"
            f" such as {first_few(unknown)}"
        )
    return Subjects(tuple(found for found in subjects if found), source)
