"""Two writers: one holds the data set, the other is refused, and a dead one's lease is taken over."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from talkforge.pipeline import lease
from talkforge.pipeline.dataset import exclusive
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, RunError
from tests.command_line import run

FIRST = ".writer/000001.json"


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    root = f"memory://lease-{uuid.uuid4().hex}/set"
    if request.param == "local":
        (tmp_path / "set").mkdir()
        root = str(tmp_path / "set")
    elif request.param == "s3":
        root = f"{request.getfixturevalue('s3_bucket')}/set"
    return Store(root)


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> Store:
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3_bucket')}/set")
    return Store(f"memory://lease-{uuid.uuid4().hex}/set")


def left_behind(store: Store, ago_s: float, name: str = FIRST) -> bytes:
    """What a writer left that was killed so long ago."""
    content = {"key": "k", "host": "far", "pid": 7, "begun": "then", "renewed_s": time.time() - ago_s}
    store.write(name, json.dumps(content).encode())
    return store.read(name)


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def test_a_second_writer_is_refused_in_one_line_until_the_first_is_done(store: Store) -> None:
    for _ in range(2):
        with exclusive(store):
            with pytest.raises(CommandError) as caught, exclusive(store):
                raise AssertionError("it must not be let in")
            assert str(caught.value).startswith(f"{store.root}: another run is at work on this data set")
            assert "\n" not in str(caught.value)
    assert [name for name in store.list() if name.startswith(lease.FOLDER)] == []


def test_of_many_writers_at_once_one_is_let_in(store: Store) -> None:
    begin, inside, refused = threading.Barrier(6), list[int](), list[str]()
    done = threading.Event()

    def write(number: int) -> None:
        begin.wait()
        try:
            with exclusive(store):
                inside.append(number)
                done.wait()
        except CommandError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(inside) + len(refused) == 6)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 5)


def test_who_is_at_work_and_how_to_go_on_is_told(remote: Store) -> None:
    left_behind(remote, ago_s=5.0)
    with pytest.raises(CommandError) as caught, exclusive(remote):
        raise AssertionError("it must not be let in")
    assert str(caught.value) == (
        f"{remote.root}: another run is at work on this data set (far, process 7, since then); if it is "
        f"dead, try again in 60 s, or remove {remote.root}/{FIRST}"
    )
    remote.delete(FIRST)
    with exclusive(remote):
        assert remote.list(lease.FOLDER) == [FIRST]


def test_the_lease_of_a_dead_writer_is_taken_over(
    remote: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "WATCH_S", 0.01)
    left_behind(remote, ago_s=3600.0)
    with caplog.at_level(logging.WARNING), exclusive(remote):
        assert remote.list(lease.FOLDER) == [".writer/000002.json"]
    assert caplog.messages == [
        f"{remote.root}: watching for 0.01 s whether the run that left its lease lives"
    ]
    assert remote.list(lease.FOLDER) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"renewed_s": "soon"}', b'{"renewed_s": null}'])
def test_a_damaged_lease_is_that_of_a_dead_writer(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(lease, "WATCH_S", 0.0)
    store = Store(f"memory://lease-{uuid.uuid4().hex}/set")
    store.write(FIRST, content)
    with exclusive(store):
        assert store.list(lease.FOLDER) == [".writer/000002.json"]


def test_a_writer_whose_clock_is_late_is_not_taken_for_dead(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(remote, ago_s=7200.0)
    renewals = iter(range(1))

    def sleep(_: float) -> None:
        for _ in renewals:
            left_behind(remote, ago_s=7190.0)

    monkeypatch.setattr(lease.time, "sleep", sleep)
    with pytest.raises(CommandError, match="another run is at work"), exclusive(remote):
        raise AssertionError("it must not be let in")


def test_the_lease_is_renewed(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    with exclusive(remote):
        first = json.loads(remote.read(FIRST))
        wait_until(lambda: json.loads(remote.read(FIRST))["renewed_s"] > first["renewed_s"])
        again = json.loads(remote.read(FIRST))
    assert {**again, "renewed_s": 0} == {**first, "renewed_s": 0}


def test_a_writer_that_was_taken_over_stops(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    with pytest.raises(RunError, match="another run has taken over this data set"), exclusive(remote):
        left_behind(remote, 0.0, ".writer/000002.json")
        while True:  # the renewal that finds out interrupts the run
            time.sleep(0.005)
    assert remote.list(lease.FOLDER)[-1] == ".writer/000002.json"


def test_a_store_that_cannot_be_reached_for_a_while_keeps_its_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.005)
    store, tries = Store(f"memory://lease-{uuid.uuid4().hex}/set"), []
    with exclusive(store):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", lambda *_: tries.append(1) or _raise(RunError("503")))
            wait_until(lambda: len(tries) > 2)
        before = json.loads(store.read(FIRST))["renewed_s"]
        wait_until(lambda: json.loads(store.read(FIRST))["renewed_s"] > before)


def _raise(error: Exception) -> None:
    raise error


def test_a_store_without_conditional_writes_lets_one_in(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"memory://lease-{uuid.uuid4().hex}/set")

    def create(self: Store, name: str, data: bytes) -> bool:
        self.write(name, data)
        left_behind(self, 0.0, name)  # another one is faster with the second write
        return True

    monkeypatch.setattr(Store, "create", create)
    told = r"another run is at work on this data set \(far, process 7"
    with pytest.raises(CommandError, match=told), exclusive(store):
        raise AssertionError("it must not be let in")


def test_a_second_command_is_refused_on_an_object_store(curated: object, s3_bucket: str) -> None:
    store, local = Store(f"{s3_bucket}/set"), Store(str(getattr(curated, "dataset")))  # noqa: B009
    store.write("dataset.json", local.read("dataset.json"))
    with exclusive(store):
        code, out, err = run("shard", store.root, "--executor", "inline")
    assert (code, out) == (2, "")
    assert err.startswith(f"talkforge: {store.root}: another run is at work on this data set (")
    assert err.count("\n") == 1


@pytest.mark.parametrize("root", ["local", "memory"])
def test_a_file_is_created_once(root: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path) if root == "local" else f"memory://lease-{uuid.uuid4().hex}")
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"
