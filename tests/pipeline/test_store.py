"""The store: the same promises on a local disk and in an object store."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from talkforge.pipeline import store as store_module
from talkforge.pipeline.store import DEFAULT_LIMITS, TEMPORARY, FetchLimits, Store, local_copy
from talkforge.schemas.errors import CommandError, DatasetError, FetchError, MediaError, RunError


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store(str(tmp_path / "data set"))
        return
    root = f"memory://test-{uuid.uuid4().hex}/data set"
    yield Store(root)
    for path in fsspec.filesystem("memory").find(root):
        fsspec.filesystem("memory").rm_file(path)


def test_write_read_list_delete(store: Store) -> None:
    assert store.list() == [] and store.list("parts") == []
    data = bytes(range(256)) * 10
    digest = store.write("parts/000001/clips.parquet", data)
    store.write("dataset.json", b"{}")
    assert digest == hashlib.sha256(data).hexdigest() == store.sha256("parts/000001/clips.parquet")
    assert store.read("parts/000001/clips.parquet") == data
    assert store.size("parts/000001/clips.parquet") == 2560
    assert store.list() == ["dataset.json", "parts/000001/clips.parquet"]
    assert store.list("parts") == ["parts/000001/clips.parquet"]
    assert store.exists("dataset.json") and not store.exists("parts") and not store.exists("other")
    store.delete("dataset.json")
    store.delete("dataset.json")
    assert store.list() == ["parts/000001/clips.parquet"]


def test_write_replaces(store: Store) -> None:
    store.write("a.json", b"a long first version")
    store.write("a.json", b"second")
    assert store.read("a.json") == b"second"


def test_open_reads_anywhere(store: Store) -> None:
    store.write("a.bin", bytes(range(100)))
    with store.open("a.bin") as file:
        file.seek(90)
        assert file.read(5) == bytes(range(90, 95))


def test_writing_publishes_at_the_end_of_the_block(store: Store) -> None:
    with store.writing("shards/a.tar") as path:
        path.write_bytes(b"tar")
        assert store.list() == [] and not store.exists("shards/a.tar")
    assert store.read("shards/a.tar") == b"tar"
    assert not path.exists()


def test_writing_leaves_nothing_when_the_block_raises(store: Store) -> None:
    store.write("a.bin", b"old")
    with pytest.raises(ZeroDivisionError), store.writing("a.bin") as path:
        path.write_bytes(b"new")
        raise ZeroDivisionError
    assert store.read("a.bin") == b"old"
    assert store.list() == ["a.bin"] and store.sweep() == [] and not path.exists()


def test_missing_files_are_named(store: Store) -> None:
    for ask in (store.read, store.open, store.size, store.sha256):
        with pytest.raises(DatasetError, match=r"expected parts/a\.json, found no such file$"):
            ask("parts/a.json")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../a",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "a\0b",
        "a\\b",
        f"{TEMPORARY}1",
        f"a/{TEMPORARY}",
    ],
)
def test_names_never_leave_the_root(store: Store, name: str) -> None:
    for ask in (store.read, store.exists, store.delete, store.open):
        with pytest.raises(CommandError, match="expected a plain name below the data set's folder"):
            ask(name)
    with pytest.raises(CommandError):
        store.write(name, b"")
    with pytest.raises(CommandError), store.writing(name):
        raise AssertionError("no path must be given out")
    assert store.list() == []


def test_a_store_can_be_sent_to_a_worker(store: Store) -> None:
    store.write("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    assert store.list() == []


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("out")
    store.write("a", b"1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.read("a") == b"1"
    assert store.local_root == tmp_path / "out"
    assert Store("memory://x").local_root is None


def test_what_a_killed_writer_leaves_is_invisible_and_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("parts/0/a.npz", b"1")
    pid = os.fork()
    if pid == 0:  # a writer that is killed in the middle of its work
        with store.writing("parts/0/b.npz") as path:
            path.write_bytes(b"half")
            os._exit(9)
    os.waitpid(pid, 0)
    (left,) = [file for file in (tmp_path / "parts/0").iterdir() if file.name != "a.npz"]
    assert left.name.startswith(TEMPORARY) and len(left.name) == len(TEMPORARY) + 32
    assert store.list() == ["parts/0/a.npz"]
    assert store.sweep() == [f"parts/0/{left.name}"]
    assert [file.name for file in (tmp_path / "parts/0").iterdir()] == ["a.npz"]


def test_a_local_file_is_flushed_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(number: int) -> None:
        calls.append("fsync folder" if os.path.isdir(f"/dev/fd/{number}") else "fsync file")  # noqa: PTH112
        fsync(number)

    def watched_replace(self: Path, target: Path) -> Path:
        calls.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    Store(str(tmp_path)).write("a", b"1")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))

    def full(self: Path, _: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError) as caught:
        store.write("parts/0/a.npz", b"1")
    assert str(caught.value) == f"cannot write parts/0/a.npz in {tmp_path}: No space left on device"
    assert store.list() == [] and store.sweep() == []


def test_a_root_that_cannot_be_made_is_a_bad_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CommandError, match=r"cannot be written to \(cannot write \.writable .*Not a directory\)$"
    ):
        Store(str(tmp_path / "file" / "data")).check_writable()


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=r"^cannot read folder in .*: Is a directory$"):
        Store(str(tmp_path)).read("folder")


@pytest.mark.parametrize("root", ["", "a\0b", "nonesuch://bucket/x"])
def test_a_bad_root_is_a_bad_command(root: str) -> None:
    with pytest.raises(CommandError, match=r"^data set "):
        Store(root).list()


def test_errors_of_a_cloud_library_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def fail(*_: object) -> None:
        raise NoCredentialsError("Unable to locate\ncredentials")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", fail)
    with pytest.raises(RunError, match=r"^cannot write a in memory://x: Unable to locate credentials$"):
        Store("memory://x").write("a", b"")


def test_local_copy_of_a_local_file_is_the_file(tmp_path: Path) -> None:
    file = tmp_path / "name with spaces.v2.mp4"
    file.write_bytes(b"video")
    for uri in (str(file), f"file://{file}"):
        with local_copy(uri) as path:
            assert path == file
        assert file.exists()


def test_local_copy_of_a_remote_file_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 7)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/inputs/a.mov", b"0123456789" * 3)
    with local_copy("memory://inputs/a.mov") as path:
        assert path.suffix == ".mov" and path.read_bytes() == b"0123456789" * 3
    assert not path.exists()
    memory.rm("/inputs", recursive=True)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("memory://nowhere/a.mp4", "memory://nowhere/a.mp4: no such file"),
        ("nonesuch://a.mp4", "nonesuch://a.mp4: Protocol not known: nonesuch"),
    ],
)
def test_an_input_that_cannot_be_fetched_is_a_media_error(uri: str, message: str) -> None:
    with pytest.raises(MediaError) as caught, local_copy(uri):
        raise AssertionError("no path must be given out")
    assert str(caught.value).startswith(message)


def test_no_room_for_a_copy_ends_the_run() -> None:
    fsspec.filesystem("memory").pipe_file("/inputs/b.mov", b"0123456789")

    class Full:
        def write(self, _: bytes) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device"):
        store_module._fetch("memory://inputs/b.mov", Full(), DEFAULT_LIMITS)  # type: ignore[arg-type]
    fsspec.filesystem("memory").rm("/inputs", recursive=True)


class OddFileSystem(MemoryFileSystem):
    """A store whose driver does what the name of the file says."""

    protocol = "odd"
    store: ClassVar[dict[str, Any]] = {}
    never = threading.Event()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if "huge" in path:
            return {"name": path, "size": 10**12}
        if "credentials" in path:
            raise LookupError("Unable to locate\ncredentials")  # no OSError, and two lines
        return {"name": path, "size": None}

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        class File(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if "silent" in path:
                    OddFileSystem.never.wait()
                if "broken" in path:
                    raise OSError(104, "Connection reset by peer")
                return bytes(size or 0) if "endless" in path else super().read(size)

        return File(b"0123456789")


@pytest.fixture
def odd() -> Iterator[None]:
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    yield
    OddFileSystem.never.set()  # lets go of the threads that wait
    OddFileSystem.never = threading.Event()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("huge", MediaError, "expected at most 0.001 GB (run.max_input_gb), found 1e+03 GB"),
        ("endless", MediaError, "expected at most 0.001 GB (run.max_input_gb), found more than 0.0"),
        ("silent", FetchError, "cannot be fetched: no data for 0.2 s (run.fetch_timeout_s)"),
        ("broken", FetchError, "cannot be fetched: Connection reset by peer"),
        ("credentials", FetchError, "cannot be fetched: Unable to locate credentials"),
    ],
)
@pytest.mark.usefixtures("odd")
def test_a_remote_input_is_bounded_in_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type, message: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uri = f"odd://bucket/{name}.mp4"
    with pytest.raises(MediaError) as caught, local_copy(uri, FetchLimits(1e6, 0.2)):
        raise AssertionError("no path must be given out")
    assert str(caught.value).startswith(f"{uri}: {message}")
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("odd")
def test_a_remote_input_within_its_bounds_is_copied() -> None:
    with local_copy("odd://bucket/good.mp4", FetchLimits(10, 60.0)) as path:
        assert path.read_bytes() == b"0123456789"
    with (
        pytest.raises(MediaError, match="at most 9e-09 GB"),
        local_copy("odd://b/c.mp4", FetchLimits(9, 60.0)),
    ):
        raise AssertionError("no path must be given out")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    local, uri = Store(str(tmp_path / "local")), Store(f"file://{tmp_path}/uri")
    before = os.umask(umask)
    try:
        for place in (local, uri):
            place.write("parts/a.json", b"{}")
            with place.writing("shards/b.tar") as path:
                path.write_bytes(b"b")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["a.json", "a.json", "b.tar", "b.tar"]
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}
    assert {path.parent.stat().st_mode & 0o777 for path in files} == {0o777 & ~umask}
