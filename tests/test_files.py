"""Files appear under their final name whole, or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

import ilo_lightning.data
from ilo_lightning.files import WriteError, locate, pack, read_stored, unpacked, write_atomically


@pytest.mark.parametrize(("content", "stored"), [(b"\x00\xff", b"\x00\xff"), ("7 ± 1\n", b"7 \xc2\xb1 1\n"), ("", b"")])
def test_writes_bytes_and_text(content: bytes | str, stored: bytes, tmp_path: Path):
    path = tmp_path / "new" / "folder" / "file"
    for _ in range(2):  # the second time over the first
        write_atomically(str(path), content)
        assert path.read_bytes() == stored
    assert os.listdir(path.parent) == ["file"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure", [full_disk, interrupt], ids=["disk full", "interrupted"])
@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("existed", [True, False], ids=["over an old file", "a new file"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    failure, call: str, existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "results.jsonl"
    if existed:
        path.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failure)
        with pytest.raises((OSError, KeyboardInterrupt)):
            write_atomically(path, "new")
    assert os.listdir(tmp_path) == (["results.jsonl"] if existed else [])
    if existed:
        assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_the_name_appears_after_the_content_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Synchronised first, then renamed: after a power cut the name never stands for an empty file."""
    path, calls = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_size, path.exists()))
        fsync(descriptor)

    def noting_replace(source: str, target: Path) -> None:
        calls.append(("replace", os.stat(source).st_size, path.exists()))
        assert os.stat(source).st_dev == os.stat(target.parent).st_dev
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    write_atomically(path, "content")
    assert calls == [("fsync", 7, False), ("replace", 7, False)]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_permissions_follow_the_umask(umask: int, tmp_path: Path):
    """As for a file that was opened for writing, and not those of the temporary file, which nobody else may read."""
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "atomic", "")
        (tmp_path / "plain").touch()
    finally:
        assert os.umask(before) == umask, "the process's umask was changed"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "plain")]
    assert modes[0] == modes[1] == 0o666 & ~umask


def test_a_folder_is_not_replaced(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "folder", "content")
    assert os.listdir(tmp_path) == ["folder"]


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/faces") == tmp_path / "faces"
    assert locate("some/file") == locate(Path("some/file")) == Path("some/file")
    bundled = Path(ilo_lightning.data.__file__).parent / "astronaut.png"
    assert locate("pkg://ilo_lightning.data/astronaut.png") == bundled
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        locate("pkg://no_such_package/file")


def test_what_is_packed_can_be_read(tmp_path: Path):
    row = {"folder": "images/a b", "batch": 3}
    source = tmp_path / "scratch" / "images" / "a b"
    source.mkdir(parents=True)
    (source / "figure.png").write_bytes(b"\x89PNG\r\n")
    (source / "solution.safetensors").write_bytes(b"")
    run = tmp_path / "run"
    pack(tmp_path / "scratch", run / "batches" / "0003.zip")
    assert [path.name for path in (run / "batches").iterdir()] == ["0003.zip"]
    assert read_stored(run, row, "figure.png") == b"\x89PNG\r\n"
    assert read_stored(run, row, "solution.safetensors") == b""
    for missing in ({**row, "batch": 4}, {**row, "folder": "images/b"}):
        with pytest.raises(FileNotFoundError):
            read_stored(run, missing, "figure.png")
    with unpacked(run, "*.png") as images:
        assert [path.relative_to(images).as_posix() for path in images.rglob("*.*")] == ["a b/figure.png"]
    assert not images.exists()
    (run / "images" / "a b").mkdir(parents=True)
    (run / "images" / "a b" / "figure.png").write_bytes(b"newer")
    assert read_stored(run, row, "figure.png") == b"newer"


def test_a_pack_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x").write_bytes(b"x" * 1000)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"No space left.*0000\.zip"):
        pack(tmp_path / "source", tmp_path / "out" / "0000.zip")
    assert list((tmp_path / "out").iterdir()) == []
