"""Batches for a rank: the same from one process or many, nothing lost, nothing twice, nothing silent."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from talkforge.schemas.errors import CommandError, DatasetError, RunError
from talkforge.schemas.units import features_from_frames
from talkforge.training.config import UMT5_TOKENS, DataConfig
from talkforge.training.data.batch import Batch
from talkforge.training.data.loader import SpanLoader, probe
from talkforge.training.data.shards import shard_list
from tests.training.shard_files import (
    IDENTITY_DIM,
    SPEECH_DIM,
    Shown,
    number_and_frame,
    write_latents,
    write_set,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four shards of three clips, every fourth clip wide, the sixth without identity."""
    clips = [
        Shown(k, width_px=96 if k % 4 == 1 else 64, identity=k != 6, omega=(None, k / 12), text=f"clip {k}")
        for k in range(12)
    ]
    return write_set(tmp_path_factory.mktemp("set"), [clips[k : k + 3] for k in range(0, 12, 3)])


def config(shards: str, **changes: Any) -> DataConfig:
    settings = {
        "shards": shards, "num_frames": 9, "sizes": [[32, 32], [32, 48]], "batch_size": 2, "shuffle": 4,
        "workers": 0,
    }  # fmt: skip
    return DataConfig.model_validate(settings | changes)


def loader(settings: DataConfig, seed: int = 0, **options: Any) -> SpanLoader:
    return SpanLoader(settings, probe(settings.shards), seed=seed, **options)


def take(batches: Iterable[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


def clips_of(batches: Iterable[Batch]) -> list[str]:
    return [key.partition("+")[0] for batch in batches for key in batch.keys]


# --------------------------------------------------------------------------- what a batch holds


def test_a_batch_holds_what_belongs_together(shards: str) -> None:
    for batch in take(loader(config(shards)), 12):
        assert batch.rgb_BFHWC is not None and batch.cached is None and batch.fps == 25.0
        wide = batch.rgb_BFHWC.shape[3] == 48
        assert batch.rgb_BFHWC.shape == (2, 9, 32, 48 if wide else 32, 3)
        assert batch.rgb_BFHWC.dtype == batch.lips_BFHW.dtype == torch.uint8
        assert batch.lips_BFHW.shape == batch.rgb_BFHWC.shape[:4]
        assert batch.lip_valid_BF.dtype == batch.has_identity_B.dtype == torch.bool
        assert batch.speech_BLD.shape == (2, features_from_frames(9, 25.0), SPEECH_DIM)
        assert {batch.speech_BLD.dtype, batch.identity_BD.dtype, batch.omega_B2.dtype} == {torch.float32}
        shown, frames = number_and_frame(batch.rgb_BFHWC.numpy())
        for k, key in enumerate(batch.keys):
            clip, first = int(key[4:6]), int(key.partition("+")[2])
            assert wide == (clip % 4 == 1)
            assert set(shown[k].tolist()) == {clip}
            assert frames[k].tolist() == list(range(first, first + 9))
            assert batch.lip_valid_BF[k].tolist() == [n % 7 != 3 for n in range(first, first + 9)]
            assert (batch.lips_BFHW[k].flatten(1).any(1) == batch.lip_valid_BF[k]).all()
            assert batch.speech_BLD[k, :, 0].tolist() == list(range(first * 2, first * 2 + 18))
            assert set(batch.speech_BLD[k, :, 1].tolist()) == {clip}
            assert batch.has_identity_B[k] == (clip != 6)
            assert batch.identity_BD[k].tolist() == (np.eye(IDENTITY_DIM)[clip] * (clip != 6)).tolist()
            assert batch.omega_B2[k].tolist() == pytest.approx([0.5, clip / 12])
            assert batch.texts[k] == f"clip {clip}"


# --------------------------------------------------------------------------- who reads what


@pytest.mark.parametrize("workers", (0, 2))
@pytest.mark.parametrize("world", (1, 2))
def test_every_sample_comes_once_an_epoch(shards: str, world: int, workers: int) -> None:
    """Over all ranks and processes: three samples a shard, as many shards for each."""
    settings = config(shards, workers=workers, batch_size=1, shuffle=1)
    streams = [iter(loader(settings, rank=rank, world=world)) for rank in range(world)]
    everything = [f"clip{k:02d}" for k in range(12)]
    orders = []
    for _ in range(3):
        epoch = [clips_of(take(stream, 12 // world)) for stream in streams]
        assert sorted(itertools.chain(*epoch)) == everything
        orders.append(epoch)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", (0, 2))
def test_a_stream_has_a_name(shards: str, workers: int) -> None:
    settings = config(shards, workers=workers)
    first = take(loader(settings), 8)
    assert equal(first, take(loader(settings), 8))
    for other in ({"seed": 1}, {"interval": 1}, {"rank": 1, "world": 2}):
        assert clips_of(first) != clips_of(take(loader(settings, **other), 8))


@pytest.mark.parametrize(("workers", "skip"), ((0, 5), (2, 4), (2, 5)))
def test_an_interval_goes_on_where_it_was_left(shards: str, workers: int, skip: int) -> None:
    settings = config(shards, workers=workers)
    expected = take(loader(settings, interval=3), skip + 6)[skip:]
    assert equal(take(loader(settings, interval=3, skip=skip), 6), expected)
    used = loader(settings, interval=3)
    take(used, 3)
    assert equal(take(used.batches(3, skip), 6), expected)


@pytest.mark.parametrize("workers", (0, 2))
def test_memory_changes_nothing_over_intervals(shards: str, workers: int) -> None:
    keeping = loader(config(shards, workers=workers, cache_mb=64))
    processes = set()
    for interval in (0, 1, 0):
        expected = take(loader(config(shards, workers=workers), interval=interval), 10)
        assert equal(take(keeping.batches(interval), 10), expected)
        if workers:
            processes.add(tuple(process.pid for process in keeping._loader._iterator._workers))
    assert len(processes) == (1 if workers else 0)  # they live on


def test_the_global_random_state_is_not_touched(shards: str) -> None:
    before = torch.get_rng_state()
    take(loader(config(shards)), 2)
    assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("world", "workers", "words"), ((5, 0, "5 ranks x 1 workers"), (2, 3, "2 ranks x 3"))
)
def test_fewer_shards_than_readers_are_refused(shards: str, world: int, workers: int, words: str) -> None:
    settings = config(shards, workers=workers)
    with pytest.raises(CommandError, match=f"data.shards: 4 shards for {words}"):
        loader(settings, world=world)
    drawn = config(shards, workers=0, sampling="resampled")
    assert len(take(loader(drawn, rank=8, world=9), 2)) == 2


def damaged(folder: Path) -> str:
    """Two shards, in each a good clip and two that cannot be used."""
    clips = [
        [Shown(0), Shown(1, num_frames=5), Shown(2)],
        [Shown(3, fps=30.0), Shown(4), Shown(5)],
    ]
    return write_set(folder, clips, {"clip02": {"mp4": b"x"}, "clip05": {"json": b'{"version": 9}'}})


@pytest.mark.parametrize("workers", (0, 2))
def test_skipped_samples_are_counted_and_named_once(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    made = loader(config(damaged(tmp_path), workers=workers, batch_size=1, shuffle=1))
    assert set(clips_of(take(made, 16))) == {"clip00", "clip04"}
    assert made.skipped == {"too_short": 1, "unreadable": 1, "other_fps": 1, "other_version": 1}
    assert made.skipped_keys == {
        "clip01": "too_short", "clip02": "unreadable", "clip03": "other_fps", "clip05": "other_version",
    }  # fmt: skip
    told = [message for message in caplog.messages if message.startswith("left out")]
    named = sorted(message.split(":")[1].strip() for message in told)
    assert named == ["clip02", "clip03", "clip05"]  # what is short by design is not warned of
    take(made.batches(1), 16)
    again = [message for message in caplog.messages if message.startswith("left out")]
    assert made.skipped.total() == 4 and again == told


def test_samples_lost_with_their_shard_are_counted(tmp_path: Path) -> None:
    shards = write_set(tmp_path, [[Shown(k) for k in range(5)], [Shown(5)]])
    tar = Path(shard_list(shards)[0][0])
    with_two = tar.read_bytes().index(b"clip02.") // 512 * 512
    tar.write_bytes(tar.read_bytes()[:with_two])
    made = loader(config(shards, batch_size=1, shuffle=1))
    assert set(clips_of(take(made, 9))) == {"clip00", "clip01", "clip05"}
    assert made.skipped == {"lost": 3} and made.skipped_keys == {str(tar): "lost"}


@pytest.mark.parametrize("workers", (0, 1))
def test_without_one_good_sample_there_is_one_line(tmp_path: Path, workers: int) -> None:
    settings = config(write_set(tmp_path, [[Shown(0), Shown(1)]]), num_frames=33, workers=workers)
    with pytest.raises(
        DatasetError, match=r"^no sample can be used: \d+ too_short; the last: clip0"
    ) as caught:
        next(iter(loader(settings)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", (0, 1))
def test_what_goes_wrong_in_a_process_arrives_as_one_line(tmp_path: Path, workers: int) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    made = loader(config(shards, workers=workers))
    Path(shard_list(shards)[0][0]).unlink()
    with pytest.raises(DatasetError, match=r"train-000000.tar: a shard that was there is gone$"):
        next(iter(made))
    made = loader(config(write_set(tmp_path, [[Shown(0)]]), workers=workers))
    made._stream._reader._config = None
    with pytest.raises(RunError, match=r"^reading shards: AttributeError: [^\n]*$"):
        next(iter(made))


class Killed:
    """A loader of torch's one of whose processes was killed."""

    _iterator = None

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nIt may be out of memory.")


def test_a_process_that_is_killed_is_one_line(shards: str) -> None:
    """Not with a real one: torch raises this wherever the signal of its end finds the program."""
    made = loader(config(shards))
    made._loader = Killed()
    with pytest.raises(RunError) as caught:
        next(iter(made))
    expected = "DataLoader worker (pid 7) is killed by signal: Killed. It may be out of memory."
    assert str(caught.value) == f"a loader process ended: {expected}"


@pytest.mark.parametrize("workers", (0, 1))
def test_after_a_fault_the_processes_are_gone(tmp_path: Path, workers: int) -> None:
    made = loader(config(write_set(tmp_path, [[Shown(0), Shown(1)]]), workers=workers))
    take(made, 1)
    processes = made._loader._iterator._workers if workers else []
    tar = tmp_path / "shards" / "train-000000.tar"
    tar.rename(tmp_path / "away")
    with pytest.raises(DatasetError, match="is gone"):
        take(made.batches(1), 99)
    assert [process.is_alive() for process in processes] == [False] * workers
    (tmp_path / "away").rename(tar)
    assert len(take(made.batches(1), 3)) == 3


def test_an_interrupt_is_the_trainers_to_answer(shards: str) -> None:
    made = loader(config(shards, workers=1))
    batches = iter(made)
    next(batches)
    (process,) = made._loader._iterator._workers
    os.kill(process.pid, signal.SIGINT)
    assert len(take(batches, 20)) == 20


def test_there_must_be_samples(tmp_path: Path) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    info = probe(shards)
    manifest = tmp_path / "shards" / "train-000000.json"
    manifest.write_text(manifest.read_text().replace('"count": 1', '"count": 0'))
    for sampling in ("epochs", "resampled"):
        with pytest.raises(DatasetError, match="expected samples, found 1 empty shards"):
            SpanLoader(config(shards, sampling=sampling), info, seed=0)


# --------------------------------------------------------------------------- cached latents


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[str]:
    """Two shards of two clips with latents of two spans each, but none of the last clip."""
    shards = write_set(tmp_path, [[Shown(0), Shown(1)], [Shown(2), Shown(3)]])
    write_latents(tmp_path, "train-000000", {0: (4, 11), 1: (0, 21)})
    write_latents(tmp_path, "train-000001", {2: (8, 9)})
    yield shards


@pytest.mark.parametrize(("workers", "cache_mb"), ((0, 0), (0, 64), (2, 64)))
def test_latents_join_their_clips(cached: str, workers: int, cache_mb: int) -> None:
    settings = config(cached, sizes=[[32, 32]], workers=workers, cache_mb=cache_mb)
    made = loader(settings, cached=True)
    drawn: Counter[str] = Counter()
    for batch in take(made, 30):
        assert batch.rgb_BFHWC is None and batch.cached is not None
        found = batch.cached
        assert found.latents_BCTHW.shape == (2, 16, 3, 4, 4)
        assert found.condition_BCTHW.shape == (2, 20, 3, 4, 4)
        for k, key in enumerate(batch.keys):
            clip, first = int(key[4:6]), int(key.partition("+")[2])
            drawn[key] += 1
            assert set(found.latents_BCTHW[k].unique().tolist()) == {clip + first / 32}
            assert set(found.condition_BCTHW[k].unique().tolist()) == {-clip - first / 32}
            assert batch.speech_BLD[k, :, 0].tolist() == list(range(first * 2, first * 2 + 18))
            assert batch.lip_valid_BF[k].tolist() == [n % 7 != 3 for n in range(first, first + 9)]
            assert found.image_BKD is not None and set(found.image_BKD[k].unique().tolist()) == {clip + 0.5}
            assert found.text_BSD is not None and found.text_BSD.shape == (2, UMT5_TOKENS, 2)
            assert found.text_BSD[k, :, 0].tolist() == [clip + 1.0] * 3 + [0.0] * (UMT5_TOKENS - 3)
        assert found.empty_text_SD is not None
        assert found.empty_text_SD[:, 1].tolist() == [9.0] + [0.0] * (UMT5_TOKENS - 1)
    assert set(drawn) == {"clip00+4", "clip00+11", "clip01+0", "clip01+21", "clip02+8", "clip02+9"}
    assert made.skipped_keys == {"clip03": "no_latents"}


def test_latents_without_text_or_image(tmp_path: Path) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    write_latents(tmp_path, "train-000000", {0: (4,)}, encoders=False)
    batch = next(iter(loader(config(shards, sizes=[[32, 32]]), cached=True)))
    assert batch.cached is not None
    assert (batch.cached.text_BSD, batch.cached.empty_text_SD, batch.cached.image_BKD) == (None, None, None)


def test_pictures_are_not_read_where_latents_stand_for_them(cached: str, tmp_path: Path) -> None:
    write_set(
        tmp_path,
        [[Shown(0), Shown(1)], [Shown(2), Shown(3)]],
        {f"clip0{k}": {"mp4": b"x"} for k in range(4)},
    )
    assert len(take(loader(config(cached, sizes=[[32, 32]]), cached=True), 5)) == 5
