"""The decoded cache: checked before it is believed, shared by processes, kept within a limit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alexmri.data.cache import DecodedCache, open_cache
from alexmri.data.folders import discover
from alexmri.errors import UserError
from alexmri.terminal import PlainTerminal

from .conftest import ImageMaker


def opened(root: Path, image_size: int = 32) -> DecodedCache:
    return open_cache(
        discover(root), image_size=image_size, channels=1, workers=1, terminal=PlainTerminal()
    )


@pytest.fixture
def root(make_images: ImageMaker) -> Path:
    return make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(4)))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder of the cache, as conftest sets it."""
    return tmp_path / "cache"


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "too long": lambda data: data + b"\0",
    "something else": lambda data: b"[" * 200_000,
    "null": lambda data: b"null",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_damaged_entry_is_decoded_again_and_that_is_said(
    root: Path, cache: Path, capsys: pytest.CaptureFixture[str], suffix: str, damage: str
) -> None:
    first = opened(root)
    expected = first.pixels_NCHW.copy()
    (path,) = cache.glob(f"*{suffix}")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again = opened(root)
    assert not again.reused
    assert np.array_equal(again.pixels_NCHW, expected)
    assert again.sha256 == first.sha256
    said = capsys.readouterr().out
    assert re.search(r"warning: the decoded images in .*\.npy are damaged .*decoded again", said)
    assert opened(root).reused
    assert capsys.readouterr().out == ""


def test_a_word_changed_in_the_index_is_damage(root: Path, cache: Path) -> None:
    opened(root)
    (path,) = cache.glob("*.json")
    document = json.loads(path.read_text())
    document["sha256"].reverse()
    path.write_text(json.dumps(document))
    assert not opened(root).reused


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_half_an_entry_is_decoded_again(root: Path, cache: Path, suffix: str) -> None:
    opened(root)
    for path in cache.glob(f"*{suffix}"):
        path.unlink()
    assert not opened(root).reused


def test_files_that_change_places_are_decoded_again(root: Path) -> None:
    for label, value in (("A", 10), ("B", 200)):
        path = root / label / "0.bmp"
        Image.new("L", (40, 40), value).save(path)
        os.utime(path, (1_577_836_800,) * 2)
    before = opened(root)
    assert before.pixels_NCHW[0].max() == 10
    (root / "A" / "0.bmp").rename(root / "aside")
    (root / "B" / "0.bmp").rename(root / "A" / "0.bmp")
    (root / "aside").rename(root / "B" / "0.bmp")
    after = opened(root)
    assert not after.reused
    assert after.pixels_NCHW[0].min() == 200
    assert after.sha256 != before.sha256


def test_files_of_several_pages_are_remembered(root: Path) -> None:
    pages = [Image.new("L", (40, 40), value) for value in (9, 99, 199)]
    pages[0].save(root / "A" / "stack.tif", save_all=True, append_images=pages[1:])
    assert opened(root).frames == {"A/stack.tif": 3}
    again = opened(root)
    assert again.reused
    assert again.frames == {"A/stack.tif": 3}


def test_sizes_are_those_of_upright_images_whatever_the_format_and_its_texts(root: Path) -> None:
    image, exif = Image.effect_noise((60, 40), 50), Image.Exif()
    exif[0x0112] = 6
    for suffix in ("tif", "png", "jpg"):
        image.save(root / "A" / f"sideways.{suffix}", exif=exif)
    info = PngInfo()
    info.add_text("Comment", "a" * 3_000_000, zip=True)
    image.save(root / "A" / "texts.png", pnginfo=info)
    folder = discover(root)
    sizes = {each.name: size for each, size in zip(folder.images, opened(root).sizes, strict=True)}
    assert {sizes[f"A/sideways.{suffix}"] for suffix in ("tif", "png", "jpg")} == {(40, 60)}
    assert sizes["A/texts.png"] == (60, 40)
    assert opened(root).sizes == tuple(sizes.values())


# --- the limit


def entries(cache: Path) -> int:
    return len(list(cache.glob("*.npy")))


def test_entries_used_least_recently_go_beyond_the_limit(
    root: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache.mkdir()
    mine = {"notes.npy": b"x" * 50_000, "README": b"mine", f"{'0' * 32}.npy": b"x" * 50_000}
    for name, data in mine.items():
        (cache / name).write_bytes(data)
    for size in (32, 33, 34):
        opened(root, size)  # 8 KB each, and what is about them
        time.sleep(0.02)
    assert opened(root, 32).reused  # used again: now the one of 33 is the oldest
    assert entries(cache) == 5
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("ALEXMRI_CACHE_GB", "0.000036")
    opened(root, 35)
    assert re.fullmatch(
        r"decoded cache .*: removed the entries used least recently, 1 with 0\.00 GB, to keep"
        r" within its limit of 0\.00 GB \(ALEXMRI_CACHE_GB sets another limit\)\n",
        capsys.readouterr().out,
    )
    assert [opened(root, size).reused for size in (32, 34, 35)] == [True] * 3
    monkeypatch.setenv("ALEXMRI_CACHE_GB", "0")
    assert not opened(root, 33).reused
    assert len(list(cache.glob("decoded-*"))) == 3  # array, index and lock of the one in use
    assert {name: (cache / name).read_bytes() for name in mine} == mine


def test_the_limit_is_20_gb_or_a_tenth_of_the_disk(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"total": 150_000, "free": 10**12})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    opened(root, 32)
    opened(root, 33)
    assert entries(cache) == 1
    usage.total = 10**12
    opened(root, 34)
    assert entries(cache) == 2


def test_entries_of_earlier_versions_and_leftovers_go_too(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / f"{'a' * 32}.npy").write_bytes(b"x" * 9000)
    (cache / f"{'a' * 32}.json").write_text('{\n  "schema": "alexmri.cache/3",\n  "root": "/d"\n}')
    (cache / f".decoded-{'b' * 32}.npy.0123abcd.tmp").write_bytes(b"x" * 9000)
    opened(root)
    assert len(list(cache.iterdir())) == 6
    monkeypatch.setenv("ALEXMRI_CACHE_GB", "0.00001")
    opened(root, 33)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ALEXMRI_CACHE_GB", text)
    with pytest.raises(UserError, match=f"ALEXMRI_CACHE_GB is '{text}'; give a number of gigabyt"):
        opened(root)


# --- several processes

PROGRAM = """
import signal, sys, time
from pathlib import Path
from alexmri.data import cache, decode
from alexmri.data.folders import discover
from alexmri.terminal import PlainTerminal

def stop(number, frame):
    raise SystemExit(7)

signal.signal(signal.SIGTERM, stop)
plain = cache.decode_all

def slow(*args, **options):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[2]))
    return plain(*args, **options)

cache.decode_all = slow
opened = cache.open_cache(
    discover(Path(sys.argv[1])), image_size=32, channels=1, workers=1, terminal=PlainTerminal()
)
print("reused" if opened.reused else "decoded", int(opened.pixels_NCHW.sum()), flush=True)
sys.stdin.read()
"""


def process(root: Path, seconds: float = 0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_of(worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def test_of_several_processes_one_decodes_and_the_others_wait(root: Path) -> None:
    workers = [process(root, 3) for _ in range(3)]
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert sum("decoding" in output for output in outputs) == 1
    assert sum("reused" in output for output in outputs) == 2
    assert len({output.split()[-1] for output in outputs}) == 1
    assert sum("another process decodes the same images" in output for output in outputs) == 2


def test_waiting_ends_with_a_signal_and_a_killed_process_keeps_nobody_waiting(root: Path) -> None:
    first = process(root, 60)
    assert line_of(first) == "decoding"
    second = process(root)
    assert "waiting for it" in line_of(second)
    second.terminate()
    assert second.wait(timeout=10) == 7
    third = process(root)
    assert "waiting for it" in line_of(third)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second.communicate()
    assert "decoded" in third.communicate(timeout=20)[0]


def test_an_entry_that_another_process_uses_stays(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = process(root)
    assert line_of(worker) == "decoding"
    assert line_of(worker).startswith("decoded ")
    monkeypatch.setenv("ALEXMRI_CACHE_GB", "0")
    opened(root, 33)
    assert entries(cache) == 2
    worker.communicate()
    opened(root, 34)
    assert entries(cache) == 1


def test_pixels_in_use_here_stay_though_the_cache_is_let_go(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = opened(root).pixels_NCHW[2:4]
    monkeypatch.setenv("ALEXMRI_CACHE_GB", "0")
    opened(root, 33)
    assert entries(cache) == 2
    assert part.max() > 0
    del part
    opened(root, 34)
    assert entries(cache) == 1


# --- the folder


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where images are decoded to by a user without a home."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    for name in ("ALEXMRI_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return temporary / f"alexmri-cache-{os.getuid()}"


def test_the_temporary_folder_is_private(root: Path, homeless: Path) -> None:
    opened(root)
    assert homeless.stat().st_mode & 0o777 == 0o700
    homeless.chmod(0o755)  # as earlier versions made it
    assert opened(root).reused
    assert homeless.stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_of_somebody_else_is_refused(
    root: Path, homeless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = pytest.raises(
        UserError, match=r"does not belong to this user" " alone.*ALEXMRI_CACHE_DIR"
    )
    (tmp_path / "theirs").mkdir()
    homeless.symlink_to(tmp_path / "theirs")
    with refused:
        opened(root)
    assert list((tmp_path / "theirs").iterdir()) == []
    homeless.unlink()
    homeless.mkdir()
    homeless.chmod(0o777)
    with refused:
        opened(root)
    homeless.chmod(0o700)
    there = homeless.stat()
    theirs = os.stat_result([*there[:4], os.getuid() + 1, *there[5:]])
    monkeypatch.setattr(Path, "lstat", lambda path: theirs)
    with refused:
        opened(root)


def test_a_folder_that_cannot_be_made_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ALEXMRI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"decoded images cannot be kept in .*file/cache: Not a"):
        opened(root)
