"""Write the slices of all scans of a folder: `alexmri slices`.

OUT/CLASS/SUBJECT_SCAN_PLANENNN.png   the slices
OUT/groups.csv                        the subject on each slice, which `train` finds by itself
OUT/slices.json                       how the slices were made, which `train` stores in the model
OUT/.slices.jsonl                     while it runs: the scans that are done
"""

import csv
import io
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from alexmri.contract.inputs import is_system_name
from alexmri.data.decode import stay_with_parent
from alexmri.data.dicom import Identity
from alexmri.data.find_scans import Scan, find_files, hashed, identify_files, series_of
from alexmri.data.folders import kind_of, list_kinds
from alexmri.data.groups_table import GROUPS_FILE
from alexmri.data.scan_labels import CARRIED, STUDY, Labelled, Table, label_scans
from alexmri.data.slicing import SCHEMA, SLICES, NotAScanError, Slicing, as_png, cut
from alexmri.errors import UserError
from alexmri.files import (
    append_text,
    make_writable,
    path_inside,
    require_json_object,
    write_atomically,
    write_json,
)
from alexmri.terminal import Terminal, first_few, number_of

JOURNAL = ".slices.jsonl"
SALT_VARIABLE = "ALEXMRI_SUBJECT_SALT"
ORIENTATION = "RAS+, nearest axes; the subject's left is on the right side (radiological)"
# DICOM files that a worker looks at before it reports.
CHUNK = 64
# Of the name of a subject in those of files, which have 255 letters at most.
MAX_STEM = 100
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_slices` did: how many scans and slices (by class) there are, what is wrong."""

    scans: int
    slices: Mapping[str, int]
    unreadable: tuple[str, ...]


def write_slices(
    root: Path,
    out: Path,
    slicing: Slicing,
    *,
    table: Table | None,
    include: str | None,
    workers: int,
    terminal: Terminal,
) -> Written:
    """Write the slices of all scans below `root` into class folders in `out`.

    Scans that were written before with the same parameters are left as they are. A scan that cannot
    be read leaves nothing behind; the others are written.

    Raises:
        UserError: no scan, contradicting labels or subjects, or `out` holds something else.
    """
    _require_apart(root, out)
    make_writable(out)
    salt = _salt()
    about = {
        "schema": SCHEMA,
        "slicing": slicing.model_dump(mode="json"),
        "orientation": ORIENTATION,
        "salt_check": hashed("alexmri", salt, 8),
    }
    done = _done(out, about)
    with _pool(workers) as pool:
        scans, broken, others = _find(root, include, pool, terminal)
        labelled, left_out = label_scans(scans, table=table, salt=salt)
        left_out += others
        if not labelled:
            why = f": {'; '.join((*left_out, *broken[:3]))}" if left_out or broken else ""
            raise UserError(f"{root} holds no scan that could be used{why}")
        _tell(labelled, left_out, terminal)
        tasks = {_id(each.scan, salt): each for each in labelled}
        _refuse_others(out, done, tasks)
        kept = {key: r for key, r in done.items() if _is_current(out, r, tasks[key])}
        for key in done.keys() - kept.keys():
            _remove(out, done[key])
        todo = [(key, each) for key, each in tasks.items() if key not in kept]
        _start_journal(out, about, kept)
        jobs = (pool.submit(_write_scan, key, each, out=out, slicing=slicing) for key, each in todo)
        records = dict(kept)
        notes: Counter[str] = Counter()
        try:
            for future in terminal.track(list(jobs), len(todo), "slicing"):
                record = future.result()
                if "left_out" in record:
                    left_out.append(f"{record['source']}: {record['left_out']}")
                    terminal.warn(f"left out: {record['source']}, because {record['left_out']}")
                elif "fault" in record:
                    broken.append(f"{record['source']}: {record['fault']}")
                else:
                    records[record["id"]] = record
                    notes.update(record["notes"])
                    append_text(out / JOURNAL, json.dumps(record) + "\n")
        except BrokenProcessPool:
            raise UserError(
                "a process that reads scans was killed, probably for lack of memory; run the same"
                " command again with fewer --workers"
            ) from None
    for note, count in notes.items():
        terminal.warn(f"{number_of(count, 'scan')}: {note}")
    if not records:
        raise UserError(
            f"none of the scans in {root} could be read: {first_few(broken or left_out, '; ')}"
        )
    _finish(out, about, [records[key] for key in tasks if key in records], tasks, left_out + broken)
    slices: Counter[str] = Counter()
    for key, record in records.items():
        slices[tasks[key].label] += len(record["indices"])
    return Written(len(records), slices, tuple(broken))


def _require_apart(root: Path, out: Path) -> None:
    if not root.is_dir():
        raise UserError(f"the folder of scans {root} does not exist")
    a, b = root.resolve(), out.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(
            f"{out} and {root} contain one another; choose another folder for the slices"
        )


def _salt() -> str:
    """Return the secret that turns identifiers into names: of the environment, or this user's."""
    if given := os.environ.get(SALT_VARIABLE):
        return given
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(home) / "alexmri" / "subject-salt"
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_hex(16))
        salt = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the secret that hides the names of patients cannot be kept in {path} ({error}); set"
            f" {SALT_VARIABLE} to a long random text, the same for every run"
        ) from None
    if not salt:
        raise UserError(f"{path} is empty; remove it, or set {SALT_VARIABLE}")
    return salt


def _find(
    root: Path, include: str | None, pool: Executor, terminal: Terminal
) -> tuple[list[Scan], list[str], list[str]]:
    """Return all scans below `root`, DICOM files that are damaged, and what else may be a scan."""
    scans, others = find_files(root, include)
    chunks = [others[i : i + CHUNK] for i in range(0, len(others), CHUNK)]
    looked = terminal.track(pool.map(identify_files, chunks), len(chunks), "looking for scans")
    found = [each for chunk in looked for each in chunk]
    whole: list[tuple[Path, Identity]] = []
    broken: list[str] = []
    for path, identity in found:
        if isinstance(identity, str):
            broken.append(f"{path.relative_to(root).as_posix()}: {identity}")
        else:
            whole.append((path, identity))
    known = {path for path, _ in found}
    kinds = Counter(kind_of(path) for path in others if path not in known)
    left_out = [f"{list_kinds(kinds)}, neither DICOM nor NIfTI"] if kinds else []
    return sorted(scans + series_of(root, whole), key=lambda scan: scan.name), broken, left_out


def _tell(labelled: Sequence[Labelled], left_out: Sequence[str], terminal: Terminal) -> None:
    """Warn of what a reader should know before the work is done."""
    for sentence in left_out:
        terminal.warn(f"left out: {sentence}")
    classes = {each.label for each in labelled}
    if len(classes) == 1:
        terminal.warn(
            f"all scans are of one class, '{classes.pop()}', and a training needs two: put the"
            " scans into a folder per class, or pass --labels"
        )
    unknown = [e.scan.name for e in labelled if e.subject is None or e.subject.startswith(STUDY)]
    if unknown:
        terminal.warn(
            f"who is on {len(unknown)} of {number_of(len(labelled), 'scan')} is unknown, such as"
            f" {unknown[0]}; each, or each DICOM study, counts as a subject of its own, so one"
            " person may be both trained on and tested. Name them as in BIDS (sub-01), or in a"
            " column 'subject' of --labels"
        )
    burned = [s for e in labelled if (s := e.scan).identity and s.identity.may_be_burned_in]
    if burned:
        terminal.warn(
            f"names may be burned into the pixels of {number_of(len(burned), 'scan')}, such as"
            f" {burned[0].name}: they say so, or are secondary captures that do not say; look at"
            " their slices"
        )


def _id(scan: Scan, salt: str) -> str:
    return hashed((scan.identity.series if scan.identity else "") or scan.name, salt, 10)


def _done(out: Path, about: Mapping[str, Any]) -> dict[str, Record]:
    """Return the scans that earlier runs have written to `out`, by id.

    Raises:
        UserError: it holds something else, or slices made in another way.
    """
    documents: list[Mapping[str, Any]] = []
    if (out / SLICES).exists():
        documents.append(require_json_object(out / SLICES))
    if (out / JOURNAL).exists():
        documents.append(_read_journal(out / JOURNAL))
    if not documents:
        if any(not is_system_name(path.name) for path in out.iterdir()):
            raise UserError(f"{out} holds other files; choose a new or empty folder")
        return {}
    records: dict[str, Record] = {}
    for document in documents:
        for key, why in (
            ("schema", "by another version"),
            ("slicing", "with other parameters"),
            ("salt_check", f"with another secret for the names of patients ({SALT_VARIABLE})"),
        ):
            if document.get(key) != about[key]:
                raise UserError(f"{out} holds slices made {why}; choose another folder")
        try:
            records |= {str(record["id"]): record for record in document["scans"]}
            all(_files(out, record) for record in records.values())
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{out / SLICES} is damaged; choose another folder") from None
    return records


def _read_journal(path: Path) -> Mapping[str, Any]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:
            continue  # the process was killed while it wrote this line
    about = parsed[0] if parsed and isinstance(parsed[0], dict) else {}
    return {**about, "scans": parsed[1:]}


def _start_journal(out: Path, about: Mapping[str, Any], kept: Mapping[str, Record]) -> None:
    lines = [json.dumps(each) for each in (about, *kept.values())]
    write_atomically(out / JOURNAL, "".join(f"{line}\n" for line in lines))


def _refuse_others(out: Path, done: Mapping[str, Record], tasks: Mapping[str, Labelled]) -> None:
    gone = [record["source"] for key, record in done.items() if key not in tasks]
    if gone:
        raise UserError(
            f"{out} holds slices of {number_of(len(gone), 'scan')} that"
            f" {'is' if len(gone) == 1 else 'are'} no longer among these, such as"
            f" {gone[0]}; choose another folder"
        )


def _is_current(out: Path, record: Record, task: Labelled) -> bool:
    same = (record.get("split", ""), record["label"], record["subject"], record["state"]) == (
        task.split,
        task.label,
        task.subject,
        task.scan.state(),
    )
    return same and all(path.is_file() for path in _files(out, record))


def _files(out: Path, record: Record) -> list[Path]:
    return [path_inside(out, _name(record, index)) for index in record["indices"]]


def _name(record: Record, index: int) -> str:
    folder = "/".join(filter(None, (record.get("split"), record["label"])))
    return f"{folder}/{record['stem']}{index:03d}.png"


def _remove(out: Path, record: Record) -> None:
    for path in _files(out, record):
        path.unlink(missing_ok=True)


def _write_scan(key: str, task: Labelled, *, out: Path, slicing: Slicing) -> Record:
    """Write the slices of one scan, and return what slices.json says of it, or what is wrong."""
    scan = task.scan
    try:
        volume = scan.read(voi=slicing.intensity == "voi")
        slices = cut(volume, slicing)
    except NotAScanError as error:
        return {"source": scan.name, "left_out": str(error)}
    except UserError as error:
        reason = str(error).removeprefix(f"{scan.paths[0]} ")
        return {"source": scan.name, "fault": reason}
    subject = task.subject or f"scan-{key}"
    record: Record = {
        "id": key,
        "source": scan.name,
        "source_files": len(scan.paths),
        "state": scan.state(),
        "split": task.split,
        "label": task.label,
        "subject": task.subject,
        "shape": list(volume.voxels_XYZ.shape),
        "spacing_mm": [round(side, 4) for side in volume.spacing_mm],
        "inverted": volume.inverted,
        "notes": list(volume.notes),
        "stem": f"{UNSAFE.sub('-', subject).lstrip('.')[:MAX_STEM]}_{key}_{slicing.plane}",
        "indices": [each.index for each in slices],
    }
    for each in slices:
        write_atomically(path_inside(out, _name(record, each.index)), as_png(each.pixels_HW))
    return record


def _finish(
    out: Path,
    about: Mapping[str, Any],
    records: Sequence[Record],
    tasks: Mapping[str, Labelled],
    left_out: Sequence[str],
) -> None:
    """Write groups.csv and slices.json; the latter last, so where it stands all is there."""
    columns = [name for name in CARRIED if any(name in each.carried for each in tasks.values())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "subject", "label", "scan", *columns])
    for record in records:
        task = tasks[record["id"]]
        subject = task.subject or f"scan-{record['id']}"
        carried = [task.carried.get(name, "") for name in columns]
        for index in record["indices"]:
            writer.writerow([_name(record, index), subject, task.label, record["id"], *carried])
    write_atomically(out / GROUPS_FILE, text.getvalue())
    write_json(out / SLICES, {**about, "left_out": list(left_out), "scans": list(records)})
    (out / JOURNAL).unlink(missing_ok=True)


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Yield processes that read scans, or this one where one is enough."""
    pool: Executor
    if workers == 1:
        pool = ThreadPoolExecutor(1)
    else:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=stay_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
