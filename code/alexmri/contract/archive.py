"""Open a model as platforms deliver it: a directory, or a model.tar.gz, unpacked with distrust."""

import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from alexmri.errors import UserError
from alexmri.files import temporary_folder

# The largest model there is (224 x 224, three channels, with its ONNX file) fills half a gigabyte.
MAX_BYTES = 2 << 30
MAX_MEMBERS = 1000
MAX_DEPTH = 16
# Headers that tell about the next one: two for each file are usual, its times and a long name.
MAX_HEADERS = 4 * MAX_MEMBERS
MAX_CHAINED_HEADERS = 16
TELLING_TYPES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
CHUNK = 1 << 20


@contextmanager
def model_folder(source: Path) -> Iterator[Path]:
    """Yield the directory of the model that `source` is or holds, packed or not.

    model.json may lie one folder down, as `tar czf model.tar.gz model/` puts it. An archive is
    unpacked to a temporary folder that is removed after the block; `source` is only read. Errors
    raised inside the block name the archive instead of that folder.

    Raises:
        UserError: no model or several, or an archive that is damaged or not to be trusted.
    """
    archive = source if source.is_file() else _archive_in(source)
    if archive is None:
        yield _model_in(source)
        return
    with temporary_folder("alexmri-model-") as unpacked:
        unpack(archive, unpacked)
        try:
            yield _model_in(unpacked)
        except UserError as error:
            raise UserError(str(error).replace(str(unpacked), str(archive))) from None


def require_model(source: Path) -> None:
    """Refuse what holds no model; an archive is not unpacked for that.

    Raises:
        UserError: no model, or several.
    """
    if not source.exists():
        raise UserError(f"{source} is not a model: it does not exist; give OUT/model of a training")
    if source.is_dir() and _archive_in(source) is None:
        _model_in(source)


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a .tar.gz below `folder`, with permissions of our own.

    Not by tarfile's `filter="data"`: Debian's Python 3.11 lacks it, and it lets links through.

    Raises:
        UserError: damaged, or with links, devices, names that are absolute, climb or come twice,
            or with more than it takes to hold a model.
    """
    try:
        with (
            gzip.open(archive) as packed,
            _OnceThrough(packed) as stream,
            tarfile.open(fileobj=stream, mode="r:", tarinfo=_counting_headers()) as tar,
        ):
            for count, member in enumerate(tar, 1):
                if count > MAX_MEMBERS:
                    raise tarfile.ReadError(f"it holds more than {MAX_MEMBERS} files")
                _unpack_member(tar, member, folder)
            while stream.read(CHUNK):  # to the end, where the checksum is
                pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"{archive} is not accepted: {error}; pack a model directory with"
            " `tar czf model.tar.gz -C DIRECTORY .`"
        ) from None
    except RecursionError:
        raise UserError(f"{archive} is not accepted: its headers are nested too deeply") from None
    except OSError as error:
        raise UserError(
            f"{archive} cannot be unpacked to {folder}: {error.strerror} (TMPDIR names another"
            " place)"
        ) from None


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    path = PurePosixPath(member.name)
    if len(path.parts) > MAX_DEPTH:
        raise tarfile.ReadError(f"it holds folders within folders, more than {MAX_DEPTH} deep")
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise tarfile.ReadError(f"it holds {member.name!r}, a name that leads out of its folder")
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    if not plain and not member.isdir():
        raise tarfile.ReadError(f"it holds {member.name!r}, which is neither a file nor a folder")
    try:
        (folder / path if member.isdir() else folder / path.parent).mkdir(
            parents=True, exist_ok=True
        )
        content = tar.extractfile(member)
        if content is not None:
            with (folder / path).open("xb") as written:
                shutil.copyfileobj(content, written, CHUNK)
    except (FileExistsError, NotADirectoryError):
        raise tarfile.ReadError(f"it holds {member.name!r} twice") from None


def _counting_headers() -> type[tarfile.TarInfo]:
    """Return what reads headers, and refuses more of those that only tell about the next one.

    tarfile calls itself for each of them, and keeps what global ones say.
    """

    class Counting(tarfile.TarInfo):
        count = chained = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Counting":
            found = super().frombuf(buf, encoding, errors)
            tells = found.type in TELLING_TYPES
            cls.chained = cls.chained + 1 if tells else 0
            cls.count += tells
            if cls.chained > MAX_CHAINED_HEADERS or cls.count > MAX_HEADERS:
                raise tarfile.ReadError("it has more headers than a model needs")
            return found

    return Counting


class _OnceThrough(io.RawIOBase):
    """The unpacked bytes of a gzip file, read once, in order and in small pieces, up to a limit.

    tarfile otherwise goes back where a header says so, and reads headers of any size into memory.
    """

    def __init__(self, packed: gzip.GzipFile) -> None:
        self._packed = packed
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= CHUNK:
            raise tarfile.ReadError("it has a header that no model needs")
        data = self._packed.read(size)
        self._position += len(data)
        if self._position > MAX_BYTES:
            raise tarfile.ReadError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._position:
            raise tarfile.ReadError("it has a header that leads backwards")
        while self._position < position and self.read(min(CHUNK, position - self._position)):
            pass
        return self._position


def _archive_in(folder: Path) -> Path | None:
    """Return the archive in a folder without a model.json: model.tar.gz, or the only one."""
    if (folder / "model.json").is_file() or not folder.is_dir():
        return None
    archives = sorted(path for path in folder.glob("[!.]*.tar.gz") if path.is_file())
    named = [path for path in archives if path.name == "model.tar.gz"]
    if len(named or archives) > 1:
        names = ", ".join(path.name for path in archives)
        raise UserError(f"{folder} holds several archives ({names}); keep the one with the model")
    return next(iter(named or archives), None)


def _model_in(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a model: it does not exist")
    if (folder / "model.json").is_file():
        return folder
    inner = sorted(path.parent for path in folder.glob("[!.]*/model.json"))
    if not inner:
        raise UserError(
            f"{folder} is not a model: it has no model.json, {_contents(folder)}; give a folder or"
            " model.tar.gz that `alexmri train` wrote, with model.json and model.safetensors"
        )
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner)
        raise UserError(f"{folder} holds several models ({names}); pass one of them")
    return inner[0]


def _contents(folder: Path) -> str:
    """Say in a few words what is in a folder."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return "it is empty"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"but {', '.join(name[:60] for name in names[:3])}{more}"
