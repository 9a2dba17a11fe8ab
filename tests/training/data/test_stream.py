"""One reader among many: who reads what, what is kept, what is passed over, and when it gives up."""

from __future__ import annotations

import itertools
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talkforge.schemas.errors import DatasetError
from talkforge.training.config import DataConfig
from talkforge.training.data import stream
from talkforge.training.data.frames import DecodedVideo, EncodedVideo
from talkforge.training.data.shards import motion_quantiles, shard_list
from talkforge.training.data.spans import Span, decode_sample
from talkforge.training.data.stream import ClipCache, Reader, ReaderId, SkippedSample, shard_order
from talkforge.training.data.tar import read_samples
from tests.training.batches import some_info
from tests.training.shard_files import (
    IDENTITY_DIM,
    MOTION_QUANTILES,
    SPEECH_DIM,
    Shown,
    description,
    publish,
    write_set,
)

MEMORY = 2**30


def reader_id(number: int = 0, total: int = 1, *, seed: int = 0, interval: int = 0) -> ReaderId:
    return ReaderId(seed, interval, number, total)


# --------------------------------------------------------------------------- who reads what


@pytest.mark.parametrize(("shards", "readers"), ((6, 1), (6, 2), (6, 3), (5, 2), (5, 4), (7, 7)))
def test_together_the_readers_read_every_shard_once_an_epoch(shards: int, readers: int) -> None:
    orders = [shard_order(shards, "epochs", reader_id(k, readers)) for k in range(readers)]
    sizes = [len(range(k, shards, readers)) for k in range(readers)]
    epochs = []
    for _ in range(4):
        epoch = [list(itertools.islice(order, size)) for order, size in zip(orders, sizes, strict=True)]
        assert sorted(itertools.chain(*epoch)) == list(range(shards))
        epochs.append(epoch)
    assert len({str(epoch) for epoch in epochs}) > 1  # another order each time


def test_an_order_has_a_name() -> None:
    def first(**names: int) -> list[int]:
        return list(itertools.islice(shard_order(50, "epochs", reader_id(**names)), 50))

    assert first() == first()
    assert first() != first(interval=1) and first() != first(seed=1)


def test_resampled_shards_come_at_any_time() -> None:
    drawn = list(itertools.islice(shard_order(4, "resampled", reader_id(0, 9)), 4000))
    assert all(900 < count < 1100 for count in Counter(drawn).values()) and len(set(drawn)) == 4
    assert drawn == list(itertools.islice(shard_order(4, "resampled", reader_id(0, 9)), 4000))
    other = list(itertools.islice(shard_order(4, "resampled", reader_id(1, 9)), 4000))
    assert drawn != other


# --------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three shards of three clips; clip 1 is wide, clip 4 is too short, clip 7 is damaged."""
    clips = [Shown(k, width_px=96 if k == 1 else 64, num_frames=5 if k == 4 else 30) for k in range(9)]
    return write_set(
        tmp_path_factory.mktemp("set"), [clips[:3], clips[3:6], clips[6:]], {"clip07": {"speech.npy": b"x"}}
    )


def config(shards: str, **changes: Any) -> DataConfig:
    settings = {
        "shards": shards,
        "num_frames": 9,
        "sizes": [[32, 32], [32, 48]],
        "batch_size": 2,
        "shuffle": 4,
    }
    return DataConfig.model_validate(settings | changes)


def reader(settings: DataConfig, memory_bytes: int = 0) -> Reader:
    info = some_info(SPEECH_DIM, IDENTITY_DIM)
    return Reader(shard_list(settings.shards), settings, info, cached=False, cache=ClipCache(memory_bytes))


def comparable(batch: tuple[list[Span], tuple[SkippedSample, ...]]) -> tuple[Any, ...]:
    spans, skipped = batch
    parts = [[span.rgb, span.lips, span.speech] for span in spans]
    return [
        (span.key, [np.asarray(part).tobytes() for part in own])
        for span, own in zip(spans, parts, strict=True)
    ], skipped


def batches(made: Reader, count: int, where: ReaderId | None = None, skip: int = 0) -> list[tuple[Any, ...]]:
    return [comparable(batch) for batch in itertools.islice(made.batches(where or reader_id(), skip), count)]


def test_batches_hold_one_size(shards: str) -> None:
    seen: Counter[str] = Counter()
    for spans, _ in itertools.islice(reader(config(shards)).batches(reader_id()), 24):
        assert len(spans) == 2 and len({span.lips.shape for span in spans}) == 1
        seen.update(span.key.partition("+")[0] for span in spans)
    good = {"clip00", "clip01", "clip02", "clip03", "clip05", "clip06", "clip08"}
    assert set(seen) == good and max(seen.values()) - min(seen.values()) <= 3


def test_batches_hold_one_length(shards: str) -> None:
    """A clip of 5 frames is too short for 9, and is trained at 5 where that is configured."""
    seen: Counter[tuple[str, int]] = Counter()
    for spans, skipped in itertools.islice(
        reader(config(shards, shorter_spans=[5])).batches(reader_id()), 24
    ):
        assert len(spans) == 2 and len({span.lips.shape for span in spans}) == 1
        assert all(span.rgb is not None and len(span.rgb) == len(span.lips) for span in spans)
        assert all(one.reason != "too_short" for one in skipped)
        seen.update((span.key.partition("+")[0], len(span.lips)) for span in spans)
    nine = {"clip00", "clip01", "clip02", "clip03", "clip05", "clip06", "clip08"}
    assert set(seen) == {(name, 9) for name in nine} | {("clip04", 5)}
    assert max(seen.values()) - min(seen.values()) <= 3


def test_what_is_left_out_comes_with_the_next_batch(shards: str) -> None:
    stream = reader(config(shards, shuffle=1, batch_size=1)).batches(reader_id())
    epoch = list(itertools.islice(stream, 7))
    skipped = [one for _, left_out in epoch for one in left_out]
    skipped += next(stream)[1] if len(skipped) < 2 else ()  # the last sample of an epoch may be a skipped one
    assert sorted((one.key, one.reason) for one in skipped) == [
        ("clip04", "too_short"), ("clip07", "unreadable"),
    ]  # fmt: skip


def test_spans_begin_anywhere(shards: str) -> None:
    stream = reader(config(shards, batch_size=1), MEMORY).batches(reader_id())
    firsts = Counter(spans[0].first for spans, _ in itertools.islice(stream, 1100))
    assert set(firsts) == set(range(22)) and all(20 < count < 90 for count in firsts.values())


@pytest.mark.parametrize("memory_bytes", (1, 200_000, MEMORY))
def test_memory_changes_nothing(shards: str, memory_bytes: int) -> None:
    """With room for nothing, for a few clips, and for all."""
    settings = config(shards)
    assert batches(reader(settings, memory_bytes), 20) == batches(reader(settings), 20)


def test_a_reader_in_its_next_interval_is_as_a_new_one(shards: str) -> None:
    settings = config(shards)
    old = reader(settings, MEMORY)
    batches(old, 7)
    assert batches(old, 5, reader_id(interval=1)) == batches(reader(settings), 5, reader_id(interval=1))
    assert batches(old, 5) == batches(reader(settings), 5) != batches(old, 5, reader_id(interval=1))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are opened from now on."""
    opened: list[str] = []

    def reading(url: str, wanted: Any) -> Iterator[Any]:
        opened.append(Path(url).stem[-1])
        return read_samples(url, wanted)

    monkeypatch.setattr(stream, "read_samples", reading)
    return opened


def test_shards_that_are_kept_whole_are_not_read_again(shards: str, reads: list[str]) -> None:
    made = reader(config(shards, shuffle=1), MEMORY)
    batches(made, 30)
    assert sorted(reads) == ["0", "1", "2"]
    batches(made, 10, reader_id(interval=1))
    assert len(reads) == 3
    reads.clear()
    batches(reader(config(shards, shuffle=1)), 30)
    assert len(reads) > 15


def test_with_little_room_what_came_first_stays(shards: str, reads: list[str]) -> None:
    """Least recently used would be the next one to be needed, always."""
    one_shard = 3 * (30 * 32 * 32 * 4 + 60 * 6 * 4 + 64)
    made = reader(config(shards, shuffle=1, sizes=[[32, 32]]), one_shard)
    batches(made, 30)
    counts = sorted(Counter(reads).values())
    assert counts[0] == 1 < counts[1]


def test_a_clip_counts_once_however_often_it_comes(shards: str) -> None:
    key, members = next(read_samples(shard_list(shards)[0][0], stream.MEMBERS))
    clip = decode_sample(key, members, ((32, 32),), (9,), some_info(SPEECH_DIM, IDENTITY_DIM)).in_memory()
    kept = ClipCache(2 * clip.memory_bytes)
    for _ in range(3):
        kept.put("s", "a", clip)
    assert kept.room_for(clip) and kept.get("s", "a") is clip
    kept.put("s", "b", clip)
    assert not kept.room_for(clip)
    kept.put("s", "c", clip)
    assert kept.get("s", "c") is None and kept.whole("s") is None


def test_what_cannot_be_kept_is_not_decoded_whole(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[str] = []
    original = EncodedVideo.decoded

    def counting(video: EncodedVideo) -> DecodedVideo:
        whole.append(video.key)
        return original(video)

    monkeypatch.setattr(EncodedVideo, "decoded", counting)
    batches(reader(config(shards), 1), 5)
    assert whole == []
    batches(reader(config(shards), MEMORY), 20)
    assert sorted(whole) == ["clip00", "clip01", "clip02", "clip03", "clip05", "clip06", "clip08"]


@pytest.mark.parametrize("skip", (1, 4, 13))
@pytest.mark.parametrize("memory_bytes", (0, MEMORY))
def test_skipping_is_dropping(shards: str, skip: int, memory_bytes: int) -> None:
    settings = config(shards)
    expected = batches(reader(settings), skip + 6)
    found = batches(reader(settings, memory_bytes), 6, skip=skip)
    assert [spans for spans, _ in found] == [spans for spans, _ in expected[skip:]]
    skipped_early = [one for _, skipped in expected[: skip + 1] for one in skipped]
    assert list(found[0][1]) == skipped_early  # what was left out on the way is not forgotten


def test_what_is_passed_over_is_not_converted(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = stream.DecodedSample.span

    def counting(clip: stream.DecodedSample, first: int) -> Span:
        made.append(clip.key)
        return original(clip, first)

    monkeypatch.setattr(stream.DecodedSample, "span", counting)
    batches(reader(config(shards)), 1, skip=10)
    assert len(made) <= 4  # one batch, and what waits for company of its size


# --------------------------------------------------------------------------- damage


INSIDE = "expected a whole tar file, found a damaged one (unexpected end of data); 2 of 3 samples are lost"
BETWEEN = "holds fewer than its manifest says; 1 of 3 samples are lost"


@pytest.mark.parametrize(("past_header", "message"), ((True, INSIDE), (False, BETWEEN)))
@pytest.mark.parametrize("memory_bytes", (0, MEMORY))
def test_a_shard_that_breaks_off_is_counted(
    tmp_path: Path, memory_bytes: int, past_header: bool, message: str
) -> None:
    """It breaks off inside a member of clip 1, or between two of them, where a tar file may end."""
    shards = write_set(tmp_path, [[Shown(0), Shown(1), Shown(2)], [Shown(3)]])
    shard = Path(shard_list(shards)[0][0])
    with tarfile.open(shard) as archive:
        member = archive.getmember("clip01.lips.npz")
    shard.write_bytes(shard.read_bytes()[: member.offset_data + 1 if past_header else member.offset])
    found = batches(reader(config(shards, shuffle=1, batch_size=1), memory_bytes), 6)
    keys = {span[0].partition("+")[0] for spans, _ in found for span in spans}
    assert keys == {"clip00", "clip03"}
    skipped = {one for _, left_out in found for one in left_out}
    assert sum(one.count for one in skipped) == 2
    assert {one.message for one in skipped if one.reason == "lost"} == {f"{shard}: {message}"}
    assert {one.key for one in skipped if one.reason != "lost"} == (set() if past_header else {"clip01"})


def test_a_shard_that_holds_less_than_promised_is_counted(tmp_path: Path) -> None:
    shards = write_set(tmp_path, [[Shown(0)], [Shown(1)]])
    first, second = (Path(url) for url, _ in shard_list(shards))
    first.write_bytes(bytes(10240))  # an empty tar file
    found = batches(reader(config(shards, shuffle=1, batch_size=1)), 3)
    lost = {(one.key, one.message) for _, left_out in found for one in left_out}
    why = "holds fewer than its manifest says; 1 of 1 samples are lost"
    assert lost == {(str(first), f"{first}: {why}")}
    second.unlink()
    with pytest.raises(DatasetError, match=f"{second.name}: a shard that was there is gone"):
        batches(reader(config(shards)), 3)


@pytest.mark.parametrize("memory_bytes", (0, MEMORY))
def test_a_reader_without_a_good_sample_gives_up(tmp_path: Path, memory_bytes: int) -> None:
    shards = write_set(tmp_path, [[Shown(0), Shown(1, num_frames=3)]], {"clip00": {"mp4": b"x"}})
    with pytest.raises(
        DatasetError, match=r"no sample can be used: \d+ too_short, \d+ unreadable; the last: clip0"
    ):
        batches(reader(config(shards), memory_bytes), 1)
    Path(shard_list(shards)[0][0]).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"no sample can be used: \d+ lost; the last: .*train-000000.tar"):
        batches(reader(config(shards), memory_bytes), 1)


def test_a_reader_with_one_good_sample_goes_on(tmp_path: Path) -> None:
    clips = [Shown(k, num_frames=3) for k in range(12)]
    shards = write_set(tmp_path, [[clip] for clip in clips] + [[Shown(12)]])
    found = batches(reader(config(shards, batch_size=1)), 5, reader_id(1, 3))
    assert {span[0].partition("+")[0] for spans, _ in found for span in spans} == {"clip12"}


@pytest.mark.parametrize(("epoch", "most"), ((4, 64), (1000, 10_000), (2e6, 4_000_000)))
def test_patience_grows_with_the_data_set(epoch: float, most: int) -> None:
    patience = stream._Patience(epoch)
    patience.skipped(SkippedSample("k", "lost", "m", count=most))
    patience.usable()
    patience.skipped(SkippedSample("k", "lost", "m", count=most))
    with pytest.raises(DatasetError, match=f"no sample can be used: 1 b, {most} lost; the last: n"):
        patience.skipped(SkippedSample("k", "b", "n"))


def test_a_large_shuffle_takes_no_patience(tmp_path: Path) -> None:
    """Of a small data set it holds many epochs at once, and hands them out in any order."""
    shards = write_set(tmp_path, [[Shown(0)], [Shown(1, num_frames=5)]])
    settings = config(shards, shuffle=256, batch_size=1)
    assert len(batches(reader(settings, MEMORY), 300)) == 300


# --------------------------------------------------------------------------- motion of spans


def spans_of(
    shards: str, caplog: pytest.LogCaptureFixture, **changes: Any
) -> tuple[dict[str, set[float]], str]:
    """Key of a clip -> motion intensities of the face in its spans, and what was logged."""
    settings = DataConfig.model_validate(
        {"shards": shards, "num_frames": 9, "sizes": ((32, 32),), "batch_size": 1, "shuffle": 1} | changes
    )
    info = some_info(SPEECH_DIM, IDENTITY_DIM)
    found: dict[str, set[float]] = {}
    for number in (0, 1):
        shared = ClipCache(0)
        reader = Reader(shard_list(shards), settings, info, cached=False, cache=shared)
        for spans, _ in itertools.islice(reader.batches(reader_id(number, 2)), 12):
            for span in spans:
                found.setdefault(span.key.partition("+")[0], set()).add(span.omega[0])
    return found, caplog.text


def test_spans_have_their_motion_and_old_clips_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_set(tmp_path, [[Shown(0, moving=True), Shown(1)], [Shown(2), Shown(3, moving=True)]])
    found, told = spans_of(shards, caplog)
    assert found["clip01"] == found["clip02"] == {0.25}
    assert len(found["clip00"]) > 1 and len(found["clip03"]) > 1
    assert told.count("was measured by an earlier version: spans of such clips have") == 1
    caplog.clear()
    found, told = spans_of(shards, caplog, omega="clip")
    assert set.union(*found.values()) == {0.25} and not told


def test_a_data_set_without_quantiles_has_the_motion_of_its_clips(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_set(tmp_path, [[Shown(0, moving=True)], [Shown(1, moving=True)]], quantiles={})
    found, told = spans_of(shards, caplog)
    assert set.union(*found.values()) == {0.25}
    assert f"that of their clips: {tmp_path}/dataset.json has no quantiles of it" in told
    (tmp_path / "dataset.json").unlink()
    caplog.clear()
    assert f"{tmp_path}/dataset.json is not there" in spans_of(shards, caplog)[1]


def test_quantiles_are_those_of_the_snapshot_that_is_read(tmp_path: Path) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    publish(tmp_path)
    (tmp_path / "dataset.json").write_bytes(description("logmel-80", {"omega_face": (9.0,)}))
    listed = shard_list(shards)
    found = {name: tuple(values) for name, values in MOTION_QUANTILES.items()}
    assert motion_quantiles(listed, "") == motion_quantiles(listed, "1") == {f"{tmp_path}/": found}
