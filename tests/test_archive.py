"""A packed model is opened wherever it lies, and an archive that is no model does no harm."""

import gzip
import io
import os
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexmri.contract import archive
from alexmri.contract.archive import model_folder, unpack
from alexmri.errors import UserError

FILES = {"model.json": b"{}", "model.safetensors": b"weights" * 9999, "extra/model.onnx": b"onnx"}


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, **values: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = 0o6000
    for key, value in values.items():
        setattr(member, key, value)
    return member


def a_file(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name), b"content"


# --- what is a model


def test_a_directory_is_used_where_it_lies(model: Path) -> None:
    with model_folder(model) as folder:
        assert folder == model
    with model_folder(model.parent) as folder:
        assert folder == model


@pytest.mark.parametrize(
    "command", [("-C", "{}", "."), ("-C", "{}/..", "model"), ("--format=gnu", "-C", "{}", ".")]
)
def test_what_tar_packs_is_unpacked_for_as_long_as_needed(
    model: Path, tmp_path: Path, command: tuple[str, ...], own_temporary_folder: Path
) -> None:
    packed = tmp_path / "delivered" / "model.tar.gz"
    packed.parent.mkdir()
    arguments = [part.format(model) for part in command]
    subprocess.run(["tar", "czf", packed, *arguments], check=True)
    for source in (packed, packed.parent):
        with model_folder(source) as folder:
            assert content_of(folder) == FILES
            assert folder.is_relative_to(own_temporary_folder)
        assert not list(own_temporary_folder.iterdir())
    assert list(packed.parent.iterdir()) == [packed]


def test_what_python_packs_is_unpacked(model: Path, tmp_path: Path) -> None:
    """It writes times with fractions, and so a header of its own for every file."""
    packed = tmp_path / "m.tgz"
    with tarfile.open(packed, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.add(model, arcname="")
    with tarfile.open(packed) as tar:
        assert any("mtime" in member.pax_headers for member in tar)
    with model_folder(packed) as folder:
        assert content_of(folder) == FILES


def test_other_archives_beside_the_model_are_no_matter(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    pack(folder / "output.tar.gz", a_file("report.html"))
    with pytest.raises(UserError, match=r"output\.tar\.gz is not a model: it has no model\.json"):
        model_folder(folder).__enter__()
    pack(folder / "another.tar.gz", a_file("report.html"))
    with pytest.raises(UserError, match=r"several archives \(another.*, output.*\); keep the one"):
        model_folder(folder).__enter__()
    pack(folder / "model.tar.gz", a_file("model.json"))
    with model_folder(folder) as found:
        assert set(content_of(found)) == {"model.json"}


def test_no_model_and_several_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a model: it does not exist"):
        model_folder(tmp_path / "nowhere").__enter__()
    two = pack(tmp_path / "two.tar.gz", a_file("a/model.json"), a_file("b/model.json"))
    with pytest.raises(UserError, match=r"two\.tar\.gz holds several models \(a, b\)"):
        model_folder(two).__enter__()
    deep = pack(tmp_path / "deep.tar.gz", a_file("a/b/model.json"))
    with pytest.raises(UserError, match=r"deep\.tar\.gz is not a model"):
        model_folder(deep).__enter__()


def test_an_error_inside_the_block_names_the_archive(
    tmp_path: Path, own_temporary_folder: Path
) -> None:
    packed = pack(tmp_path / "model.tar.gz", a_file("model.json"))
    with pytest.raises(UserError) as told, model_folder(packed) as folder:
        raise UserError(f"{folder / 'model.json'} is damaged")
    assert str(told.value) == f"{packed}/model.json is damaged"
    assert not list(own_temporary_folder.iterdir())


# --- what is refused


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([a_file("../evil")], "'../evil', a name that leads out"),
        ([a_file("model/../../evil")], "leads out"),
        ([a_file("/evil")], "leads out"),
        ([(entry("../evil", tarfile.DIRTYPE), b"")], "leads out"),
        ([(entry("a", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")], "'a', which is neither"),
        ([(entry("a", tarfile.SYMTYPE, linkname="b"), b"")], "neither a file nor a folder"),
        ([a_file("b"), (entry("a", tarfile.LNKTYPE, linkname="b"), b"")], "neither a file"),
        ([(entry("a", tarfile.FIFOTYPE), b"")], "neither a file nor a folder"),
        ([(entry("a", tarfile.CHRTYPE), b"")], "neither a file nor a folder"),
        ([(entry("a", tarfile.BLKTYPE), b"")], "neither a file nor a folder"),
        ([(entry("a", b"?"), b"")], "neither a file nor a folder"),
        ([a_file("a"), a_file("a")], "'a' twice"),
        ([a_file("a"), a_file("./a")], "twice"),
        ([a_file("a"), (entry("a", tarfile.DIRTYPE), b"")], "twice"),
        ([a_file("a/b"), a_file("a")], "twice"),
        ([a_file("a"), a_file("a/b")], "twice"),
        ([a_file("a"), a_file("a/b/c")], "twice"),
        ([a_file(".")], "twice"),
        ([a_file("a\nb"), a_file("a\nb")], r"'a\nb' twice"),
        ([a_file(str(i)) for i in range(1001)], "more than 1000 files"),
    ],
)
def test_an_archive_that_wants_more_than_files_and_folders_is_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], reason: str
) -> None:
    packed = pack(tmp_path / "model.tar.gz", *members)
    target = tmp_path / "inside" / "target"
    target.mkdir(parents=True)
    with pytest.raises(UserError) as told:
        unpack(packed, target)
    assert str(told.value).startswith(f"{packed} is not accepted: it holds ")
    assert reason in str(told.value)
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/evil").exists()
    assert not [path for path in target.rglob("*") if path.is_symlink()]


def test_nothing_unpacks_to_more_than_a_model_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 4 << 20)
    packed = pack(tmp_path / "bomb.tar.gz", (entry("a"), bytes(5 << 20)))
    assert packed.stat().st_size < 10_000
    with pytest.raises(UserError, match="it unpacks to more than 4 MiB"):
        unpack(packed, tmp_path)
    behind = tmp_path / "behind.tar.gz"  # zeros after the end of the archive are read too
    behind.write_bytes(
        pack(tmp_path / "x.tar.gz", a_file("b")).read_bytes() + gzip.compress(bytes(5 << 20))
    )
    with pytest.raises(UserError, match="it unpacks to more than 4 MiB"):
        unpack(behind, tmp_path)


def header(size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header as no program writes it."""
    block = bytearray(entry("a", kind).tobuf())
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        # Both would be read into memory at once.
        (header(b"%011o\0" % (2**31), tarfile.XHDTYPE), "a header that no model needs"),
        (header(b"%011o\0" % (2**31), tarfile.GNUTYPE_LONGNAME), "a header that no model needs"),
        # Some builds of Python's tarfile notice that by themselves.
        (
            header(b"\xff" * 4 + b"\x80" + bytes(7)),
            "(a header that leads backwards|invalid offset)",
        ),
        (header(b"\x80" + b"\xff" * 11), "unexpected end of data"),
    ],
    ids=["pax", "longname", "back", "huge"],
)
def test_a_header_that_leads_astray_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    packed = tmp_path / "model.tar.gz"
    packed.write_bytes(gzip.compress(content + bytes(10240)))
    with pytest.raises(UserError, match=f"is not accepted: .*{reason}"):
        unpack(packed, tmp_path)


def nested(depth: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(entry("/".join("a" * k), tarfile.DIRTYPE), b"") for k in range(1, depth + 1)]


@pytest.mark.parametrize("members", [nested(900), [a_file("a/" * 2000 + "file")]])
def test_folders_within_folders_without_end_are_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    packed = pack(tmp_path / "model.tar.gz", *members)
    with pytest.raises(UserError, match="it holds folders within folders, more than 16 deep"):
        unpack(packed, tmp_path / "target")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"L", b"K"]
)
@pytest.mark.parametrize("count", [100, 3000, 100_000])
def test_headers_about_headers_without_end_are_refused(
    tmp_path: Path, kind: bytes, count: int
) -> None:
    content = b"name\0" if kind in (b"L", b"K") else b"13 comment=ab\n"
    header_of_a_header = entry("a", kind)
    header_of_a_header.size = len(content)
    block = header_of_a_header.tobuf() + content.ljust(512, b"\0")
    packed = tmp_path / "model.tar.gz"
    packed.write_bytes(gzip.compress(block * count + entry("b").tobuf() + bytes(1024)))
    with pytest.raises(UserError, match="it has more headers than a model needs"):
        unpack(packed, tmp_path / "target")
    packed.write_bytes(gzip.compress(block * 2 + entry("b").tobuf() + bytes(1024)))
    unpack(packed, tmp_path / "target")


def test_a_model_of_another_framework_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no model\.json, it is empty; give a folder or"):
        model_folder(folder).__enter__()
    for name in ("model.pth", "code", "config.pbtxt", "x", "y"):
        (folder / name).touch()
    with pytest.raises(UserError) as raised:
        model_folder(folder).__enter__()
    assert "but code, config.pbtxt, model.pth and 2 more; give a folder" in str(raised.value)
    assert "with model.json and model.safetensors" in str(raised.value)


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(64 << 20)
    packed = tmp_path / "model.tar.gz"
    for form in ("gnu", "posix"):
        command = ["tar", "--sparse", f"--format={form}", "-C", tmp_path, "-czf", packed, "a"]
        subprocess.run(command, check=True)
        with pytest.raises(UserError, match="is not accepted"):
            unpack(packed, tmp_path / form)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"PK\x03\x04 a zip archive", "Not a gzipped file"),
        (bytes(10240), "Not a gzipped file"),
        (gzip.compress(b"no tar at all" * 100, mtime=0), "invalid header"),
        (gzip.compress(b"", mtime=0), "empty file"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    packed = tmp_path / "model.tar.gz"
    packed.write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.tar\.gz is not accepted: .*{reason}"):
        unpack(packed, tmp_path / "target")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_archive_is_never_taken_for_a_whole_one(
    tmp_path: Path, data: st.DataObject
) -> None:
    whole = pack(tmp_path / "whole.tar.gz", (entry("weights"), bytes(range(256)) * 40)).read_bytes()
    packed = tmp_path / "model.tar.gz"
    packed.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with (
        tempfile.TemporaryDirectory() as target,
        pytest.raises(UserError, match=r"is not accepted: .*; pack a model directory with"),
    ):
        unpack(packed, Path(target))


def test_what_the_disk_refuses_is_told_as_it_is(tmp_path: Path) -> None:
    packed = pack(tmp_path / "model.tar.gz", a_file("n" * 300))
    with pytest.raises(UserError, match=r"cannot be unpacked to .*: File name too long"):
        unpack(packed, tmp_path)


def test_permissions_are_our_own(tmp_path: Path) -> None:
    unpack(pack(tmp_path / "m.tar.gz", a_file("a"), (entry("b", tarfile.DIRTYPE), b"")), tmp_path)
    assert (tmp_path / "a").stat().st_mode & 0o7777 & ~0o22 == 0o644
    assert (tmp_path / "b").stat().st_mode & 0o7777 & ~0o22 == 0o755


@pytest.mark.parametrize("call", ["mkdir", "unlink", "rmdir"])
def test_a_signal_while_the_folder_is_made_or_removed_leaves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, own_temporary_folder: Path, call: str
) -> None:
    packed = pack(model.parent / "model.tar.gz", a_file("model.json"))
    real = getattr(os, call)

    def interrupted(*arguments: object, **options: object) -> None:
        real(*arguments, **options)
        signal.raise_signal(signal.SIGUSR2)

    def end(number: int, frame: object) -> None:
        monkeypatch.setattr(os, call, real)
        raise SystemExit(143)

    before = signal.signal(signal.SIGUSR2, end)
    monkeypatch.setattr(os, call, interrupted)
    try:
        with pytest.raises(SystemExit), model_folder(packed):
            pass
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not list(own_temporary_folder.iterdir())
