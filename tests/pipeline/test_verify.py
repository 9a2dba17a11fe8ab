"""`verify` names what is wrong, and finds nothing in a data set that is whole."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talkforge.curation import media
from talkforge.pipeline import shards
from talkforge.pipeline.dataset import save_dataset
from talkforge.pipeline.shards import ShardClip
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import alignment, check_sample, level_dbfs, verify
from talkforge.schemas import sample
from talkforge.schemas.arrays import ClipArrays, Floats
from talkforge.schemas.config import Config, ShardConfig
from talkforge.schemas.dataset import Dataset
from talkforge.schemas.records import Clip, ClipMeasures, Face, Verdict
from talkforge.schemas.sample import Members, Provenance, SampleMeta, pack_mask
from tests.conftest import RealClip

FRAMES, WIDTH_PX, HEIGHT_PX, FPS = 30, 64, 48, 25.0
SAMPLES = 19_200
KEYS = tuple(f"{number:012x}_00000000_00001200_t0" for number in range(3))
JPG = b"\xff\xd8\xff\xe0"


def sound(seed: int, hz: int, channels: int = 1) -> Floats:
    """Noise in syllables, the same at any rate: a different voice for each seed."""
    rng = np.random.default_rng(seed)
    at_s = np.arange(round(FRAMES / FPS * hz)) / hz
    tones = rng.uniform(100, 3000, 40), rng.uniform(0, 2 * np.pi, 40)
    voice = sum(np.sin(2 * np.pi * f * at_s + phase) for f, phase in zip(*tones, strict=True))
    loudness = 0.02 + np.abs(np.sin(2 * np.pi * rng.uniform(1, 3) * at_s))
    mono = (0.02 * voice * loudness).astype(np.float32)
    return mono if channels == 1 else np.stack([mono] * channels, axis=1)


def mp4(audio: Floats | None, frames: int = FRAMES, fps: float = FPS, width_px: int = WIDTH_PX) -> bytes:
    pictures = (np.full((HEIGHT_PX, width_px, 3), 40 + 5 * i, np.uint8) for i in range(frames))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clip.mp4"
        media.encode_mp4(out, pictures, fps, audio, crf=23, preset="ultrafast")
        return out.read_bytes()


@functools.cache
def good_mp4(number: int) -> bytes:
    return mp4(sound(number, 48_000, 2))


def meta(key: str) -> SampleMeta:
    clip = Clip(
        clip_id=key,
        video_id=key[:12],
        uri="a.mp4",
        scene=0,
        track=0,
        start_s=0.0,
        end_s=1.2,
        fps=FPS,
        num_frames=FRAMES,
        width_px=WIDTH_PX,
        height_px=HEIGHT_PX,
    )
    face = Face(source_fps=25.0, face_px=200.0, face_confidence=0.97, face_confidence_min=0.9, faces_max=1)
    return SampleMeta(
        measures=ClipMeasures(clip=clip, stopped_by=None, face=face),
        omega_face=None,
        omega_body=None,
        person_id=None,
        verdict=Verdict(clip_id=key, accepted=True, reasons=()),
        provenance=Provenance(
            uri="a.mp4",
            sha256="",
            source="",
            licence="",
            consent="",
            models={},
            config_hash="",
            tool_version="",
        ),
    )


def members(number: int, video: bytes | None = None, audio: Floats | None = None) -> Members:
    arrays = ClipArrays(
        landmarks=np.zeros((FRAMES, 478, 3), np.float32),
        contour=np.ones((FRAMES, 4, 2), np.float32),
        lip_valid=np.full(FRAMES, 2, np.uint8),
        joints=np.zeros((FRAMES, 65, 3), np.float32),
        face_rgb=np.zeros((112, 112, 3), np.uint8),
        speech=np.zeros((60, 80), np.float16),
    )
    return sample.encode(
        meta(KEYS[number]),
        arrays,
        pack_mask(np.ones((FRAMES, HEIGHT_PX, WIDTH_PX), bool)),
        mp4=good_mp4(number) if video is None else video,
        flac=media.encode_flac(sound(number, 16_000) if audio is None else audio),
        face_jpg=JPG,
    )


def write_part(store: Store, name: str) -> None:
    files = {f"{member}.npz": store.write(f"parts/{name}/{member}.npz", member.encode()) for member in "ab"}
    store.write(f"parts/{name}/part.json", json.dumps({"name": name, "files": files}).encode())


def write_ledger(store: Store, **changes: dict[str, object]) -> None:
    rows = {
        key: {"clip_id": key, "accepted": True, "shard": f"train-00000{i // 2}"}
        for i, key in enumerate(order())
    }
    rows["rejected"] = {"clip_id": "rejected", "accepted": False, "shard": None}
    for key, change in changes.items():
        rows.setdefault(key, {"clip_id": key, "accepted": True, "shard": None}).update(change)
    with store.writing("ledger.parquet") as path:
        schema = pa.schema([("clip_id", pa.string()), ("accepted", pa.bool_()), ("shard", pa.string())])
        pq.write_table(pa.Table.from_pylist(list(rows.values()), schema=schema), path)


def plans() -> list[shards.ShardPlan]:
    clips = [ShardClip(key, "train", FRAMES, FPS, WIDTH_PX, HEIGHT_PX, "") for key in KEYS]
    return shards.plan(clips, ShardConfig(max_samples=2))


def order() -> list[str]:
    return [key for shard in plans() for key in shard.keys]


def write_shards(store: Store) -> None:
    for shard in plans():
        shards.write_shard(store, shard, ((key, members(KEYS.index(key))) for key in shard.keys))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    store = Store(str(root))
    description = Dataset(
        schema_version=1, tool_version="0", config=Config(), config_hash="", models=(), joints=()
    )
    save_dataset(store, description)
    write_part(store, "000000")
    write_part(store, "000001")
    write_shards(store)
    write_ledger(store)
    return root


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Store:
    """A copy of the whole data set, to be damaged."""
    copy = Store(str(tmp_path))
    original = Store(str(whole))
    for name in original.list():
        copy.write(name, original.read(name))
    return copy


def said(store: Store) -> list[str]:
    return [str(problem) for problem in verify(store)]


def flip(store: Store, name: str, at: int) -> None:
    data = bytearray(store.read(name))
    data[at] ^= 1
    store.write(name, bytes(data))


def offset(store: Store, name: str, piece: bytes) -> int:
    at = store.read(name).index(piece)
    assert at > 0
    return at


# ------------------------------------------------------------------------------ whole


def test_a_whole_data_set_has_no_problems(store: Store) -> None:
    before = {name: store.read(name) for name in store.list()}
    assert verify(store) == []
    assert {name: store.read(name) for name in store.list()} == before


def test_an_object_store_is_verified_alike(whole: Path) -> None:
    remote, original = Store("memory://verify-test"), Store(str(whole))
    for name in original.list():
        remote.write(name, original.read(name))
    assert verify(remote) == []
    flip(remote, "parts/000000/a.npz", 0)
    assert [problem.path for problem in verify(remote)] == ["parts/000000/a.npz"]
    for name in remote.list():
        remote.delete(name)


def test_a_data_set_that_was_only_measured_is_whole(store: Store) -> None:
    for name in store.list("shards"):
        store.delete(name)
    write_ledger(store, **{key: {"shard": None} for key in KEYS})
    assert said(store) == []


# ------------------------------------------------------------------------------ files


def test_dataset_json(store: Store) -> None:
    store.write("dataset.json", b"{")
    (line,) = said(store)
    assert line.startswith("dataset.json: expected JSON, found Expecting property name")
    store.write("dataset.json", b"[]")
    assert said(store) == ["dataset.json: expected a JSON object, found list"]
    store.write("dataset.json", b'{"schema_version": 1}')
    assert said(store) == ["dataset.json: tool_version: Field required"]
    store.delete("dataset.json")
    assert said(store) == ["dataset.json: missing"]


def test_tombstones_and_what_sync_keeps(store: Store) -> None:
    """Tombstones are not dropped: what was erased could come back."""
    store.write("erased.json", b'{"version": 2}')
    store.write("erasing.json", b'{"sha')
    store.write("sync.json", b'{"stat')
    store.write("sync.npz", b"PK")
    found = verify(store)
    assert [(problem.path, problem.drop) for problem in found] == [
        ("sync.json", ("sync.json",)),
        ("sync.npz", ("sync.json", "sync.npz")),
        ("erased.json", ()),
        ("erasing.json", ("erasing.json",)),
    ]
    assert found[0].what == "expected the state of what was scored"
    assert found[1].what.startswith("sync weights sync.npz: expected those of this version: ")
    assert found[2].what.startswith("version: ")
    assert found[3].what.startswith("expected JSON") and found[3].what.endswith("what is to be erased")


def test_parts(store: Store) -> None:
    good = hashlib.sha256(b"a").hexdigest()
    store.write("parts/000000/a.npz", b"A")
    store.delete("parts/000000/b.npz")
    store.write("parts/000000/c.npz", b"extra")
    store.delete("parts/000001/part.json")
    store.write("parts/000002/part.json", b"{}")
    assert said(store) == [
        f"parts/000000/a.npz: expected sha256 {good}, found {hashlib.sha256(b'A').hexdigest()}",
        "parts/000000/b.npz: missing, but listed in part.json",
        "parts/000000/c.npz: not listed in part.json",
        "parts/000001: no part.json: not committed, and measured again by the next run",
        "parts/000002/part.json: expected 'files' with a sha256 for each, found none",
    ]


def test_a_flipped_byte_in_a_sample_is_found_and_the_sample_is_named(store: Store) -> None:
    tar, key = "shards/train-000000.tar", order()[1]
    sha256 = hashlib.sha256(store.read(tar)).hexdigest()
    lips = members(KEYS.index(key))["lips.npz"]
    second = store.read(tar).index(lips, offset(store, tar, f"{key}.lips.npz".encode()))
    flip(store, tar, second + 80)  # past the headers of the npz: compressed pixels
    first, second_line = said(store)
    assert first == f"{tar}: expected sha256 {sha256}, found {store.sha256(tar)}"
    assert second_line.startswith(
        f"{tar}: {key}: sample {key}: lips.npz: expected mask, valid, contour, found"
    )


def test_a_flipped_byte_in_a_header_is_found(store: Store) -> None:
    tar = "shards/train-000000.tar"
    flip(store, tar, offset(store, tar, f"{order()[1]}.flac".encode()))
    lines = said(store)
    assert lines[0].startswith(f"{tar}: expected sha256 ")
    assert any(line.startswith(f"{tar}: {order()[1]}: ") for line in lines)


@pytest.mark.parametrize("at", [0, 100, 512, 5000, 10240])
def test_a_flipped_byte_anywhere_is_found(store: Store, at: int) -> None:
    flip(store, "shards/train-000001.tar", at)
    assert any(line.startswith("shards/train-000001.tar: expected sha256 ") for line in said(store))


def test_a_truncated_tar(store: Store) -> None:
    tar, key = "shards/train-000000.tar", order()[1]
    data = store.read(tar)
    store.write(tar, data[: offset(store, tar, f"{key}.mp4".encode()) + 700])
    lines = said(store)
    assert lines[0] == f"{tar}: expected {len(data)} bytes, found {store.size(tar)}"
    assert f"{tar}: expected 2 samples, 1 missing, the first {key}" in lines
    assert f"ledger.parquet: {key}: expected it in train-000000, found it in no shard" in lines
    assert any("expected a whole tar file, found a damaged one" in line for line in lines)


def test_a_missing_manifest_a_missing_tar_and_extra_files(store: Store) -> None:
    store.delete("shards/train-000000.json")
    store.delete("shards/train-000001.tar")
    store.write("shards/notes.txt", b"")
    store.write("shards/more/train-000000.tar", b"")
    a, b, c = order()
    assert said(store) == [
        "shards/more/train-000000.tar: not a file of any shard",
        "shards/notes.txt: not a file of any shard",
        "shards/train-000000.tar: no manifest train-000000.json: the shard is not committed",
        "shards/train-000001.tar: missing, but train-000001.json promises it",
        *(
            f"ledger.parquet: {key}: expected it in train-00000{i}, found it in no shard"
            for key, i in sorted([(a, 0), (b, 0), (c, 1)])
        ),
    ]


def test_a_manifest_that_lies(store: Store) -> None:
    path = "shards/train-000000.json"
    good = json.loads(store.read(path))
    a, b = good["keys"]
    for change, line in [
        ({"keys": [b, a]}, "train-000000.tar: expected its samples in the order of the manifest"),
        ({"keys": [a], "count": 1}, f"train-000000.tar: expected 1 samples, 1 more found, the first {b}"),
        ({"count": 3}, "train-000000.json: expected count 2, the number of its keys, found 3"),
        ({"name": "train-000007"}, "train-000000.json: expected name train-000000, found train-000007"),
        ({"sha256": "0"}, "train-000000.tar: expected sha256 0, found "),
        ({"bytes": 1}, f"train-000000.tar: expected 1 bytes, found {good['bytes']}"),
    ]:
        store.write(path, json.dumps({**good, **change}).encode())
        (found,) = said(store)
        assert found.startswith(f"shards/{line}")
    store.write(path, b"{}")
    assert said(store)[0].startswith(f"{path}: shards/train-000000.json: expected a shard manifest")


def test_a_sample_in_two_shards(store: Store) -> None:
    for suffix in ("tar", "json"):
        data = store.read(f"shards/train-000001.{suffix}").replace(b"train-000001", b"train-000002")
        store.write(f"shards/train-000002.{suffix}", data)
    key = order()[2]
    assert said(store) == [
        f"shards/train-000002.tar: {key}: expected once in the data set, found in train-000001 as well"
    ]


def test_tar_members_must_be_plain_files(store: Store) -> None:
    tar, path = "shards/train-000001.tar", "shards/train-000001.json"
    key = order()[2].encode()
    data = store.read(tar).replace(key + b".flac", b"../" + key[3:] + b".flac")
    # A tar header carries its own checksum: the sum of its bytes.
    at = data.index(b"../" + key[3:])
    header = bytearray(data[at : at + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = data[:at] + bytes(header) + data[at + 512 :]
    store.write(tar, data)
    manifest = json.loads(store.read(path))
    store.write(path, json.dumps({**manifest, "sha256": hashlib.sha256(data).hexdigest()}).encode())
    name = (b"../" + key[3:] + b".flac").decode()
    assert f"{tar}: expected files named <key>.<member> only, found {name!r}" in said(store)


# ------------------------------------------------------------------------------ ledger


def test_the_ledger_and_the_shards_must_agree(store: Store) -> None:
    a, b, c = order()
    changes = {
        a: {"shard": "train-000001"},
        b: {"shard": None},
        c: {"accepted": False},
        "lost": {"shard": "train-000000"},
    }
    write_ledger(store, **changes)
    lines = {
        a: f"ledger.parquet: {a}: expected it in train-000001, found it in train-000000",
        b: f"ledger.parquet: {b}: expected it in no shard, found it in train-000000",
        c: f"ledger.parquet: {c}: not accepted, but a sample in train-000001: shard again",
        "lost": "ledger.parquet: lost: expected it in train-000000, found it in no shard",
    }
    assert said(store) == [lines[key] for key in sorted(lines)]


def test_a_sample_without_a_row_and_a_ledger_that_is_none(store: Store) -> None:
    with store.writing("ledger.parquet") as path:
        pq.write_table(
            pa.table({"clip_id": ["x"], "accepted": [False], "shard": pa.nulls(1, pa.string())}), path
        )
    assert said(store) == [
        f"ledger.parquet: {key}: no row, but a sample in train-00000{order().index(key) // 2}" for key in KEYS
    ]
    store.write("ledger.parquet", b"not parquet")
    (line,) = said(store)
    assert line.startswith("ledger.parquet: not a readable Parquet file (")
    with store.writing("ledger.parquet") as path:
        pq.write_table(pa.table({"clip_id": ["x"]}), path)
    (line,) = said(store)
    assert line.startswith("ledger.parquet: expected the columns clip_id, accepted, shard; found ")
    store.delete("ledger.parquet")
    assert said(store) == ["ledger.parquet: missing"]


# ------------------------------------------------------------------------------ samples


def shifted(number: int, by_s: float) -> Floats:
    return np.roll(sound(number, 48_000, 2), round(by_s * 48_000), axis=0)


def promising(flac: bytes, samples: int) -> bytes:
    """The FLAC file with another number of samples in its STREAMINFO."""
    packed = int.from_bytes(flac[18:26], "big") >> 36 << 36 | samples
    return flac[:18] + packed.to_bytes(8, "big") + flac[26:]


def test_a_good_sample() -> None:
    assert check_sample(KEYS[0], members(0)) == []


BROKEN = {
    "another clip's sound": (
        lambda: members(0, audio=sound(1, 16_000)),
        "mp4 and flac: expected the same audio, found similarity 0.",
    ),
    "sound 40 ms late": (
        lambda: members(0, video=mp4(shifted(0, 0.040))),
        "mp4 and flac: expected audio within 10 ms, found the mp4's 40 ms late",
    ),
    "sound 20 ms early": (
        lambda: members(0, video=mp4(shifted(0, -0.020))),
        "mp4 and flac: expected audio within 10 ms, found the mp4's 20 ms early",
    ),
    "no sound": (lambda: members(0, video=mp4(None)), "mp4: expected an audio track, found none"),
    "silence for speech": (
        lambda: members(0, video=mp4(np.zeros((57_600, 2), np.float32))),
        "mp4 and flac: expected the same audio, found similarity 0.00 (least 0.7)",
    ),
    "a frame short": (
        lambda: members(0, video=mp4(sound(0, 48_000, 2), frames=29)),
        "mp4: expected 30 frames, found 29",
    ),
    "another rate": (
        lambda: members(0, video=mp4(sound(0, 48_000, 2), fps=24)),
        "mp4: expected 25 frames per second, found 24",
    ),
    "another size": (
        lambda: members(0, video=mp4(sound(0, 48_000, 2), width_px=62)),
        "mp4: expected 64x48 pixels, found 62x48",
    ),
    "flac cut short": (
        lambda: {**members(0), "flac": members(0)["flac"][:-1000]},
        "flac: expected ",
    ),
    "flac with less sound than it promises": (
        lambda: {**members(0), "flac": promising(media.encode_flac(sound(0, 16_000)[:18_000]), SAMPLES)},
        "flac: expected 19200 samples, decoded 18000",
    ),
    "no video at all": (
        lambda: members(0, video=b"\x00\x00\x00\x18ftypisom" + bytes(100)),
        f"'{KEYS[0]}.mp4'",
    ),
    "members in another order": (
        lambda: dict(reversed(members(0).items())),
        "expected its members in the order blendshapes.npy, face.jpg, face.npz, flac, ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sample_is_named(name: str) -> None:
    make, expected = BROKEN[name]
    found = check_sample(KEYS[0], make())
    assert found and found[0].startswith(expected)
    assert not any("\n" in line for line in found)


def test_silence_needs_no_alignment() -> None:
    nothing = np.zeros((57_600, 2), np.float32)
    assert check_sample(KEYS[0], members(0, video=mp4(nothing), audio=nothing[:SAMPLES, 0])) == []


def tone(hz: float, shift: int = 0) -> Floats:
    return np.sin(2 * np.pi * hz * (np.arange(SAMPLES) - shift) / 16_000).astype(np.float32)


def noise() -> Iterator[tuple[int, float]]:
    yield from [(0, 0.0), (160, 0.01), (-160, -0.01), (161, 161 / 16_000), (4000, 0.25), (-8000, -0.5)]


@pytest.mark.parametrize(("shift", "lag_s"), list(noise()))
def test_alignment_finds_the_lag_to_the_sample(shift: int, lag_s: float) -> None:
    reference = np.random.default_rng(0).normal(size=SAMPLES).astype(np.float32)
    similarity, found_s = alignment(0.1 * np.roll(reference, shift), reference)
    assert found_s == lag_s
    assert similarity == pytest.approx(1 - abs(shift) / SAMPLES, abs=0.02)


def test_a_steady_tone_is_in_place_although_it_fits_a_period_later() -> None:
    similarity, lag_s = alignment(tone(440, shift=3), tone(440))
    assert lag_s == pytest.approx(3 / 16_000) and similarity > 0.99


def test_alignment_with_silence_is_no_likeness() -> None:
    assert alignment(np.zeros(100, np.float32), tone(440)[:100]) == (0.0, 0.0)


def test_level() -> None:
    assert level_dbfs(tone(1000)) == pytest.approx(-3.01, abs=0.01)
    assert level_dbfs(np.zeros(10, np.float32)) == level_dbfs(np.zeros(0, np.float32)) == -120


@pytest.mark.parametrize("name", ["grid_bbaf2n.mpg", "st_katie.mp4"])
def test_real_speech_through_both_codecs_is_alike_and_aligned(real_clip: RealClip, name: str) -> None:
    from talkforge.curation.media.probe import content_hash, probe
    from talkforge.schemas.records import Input

    path = real_clip(name)
    video = probe(path, Input(uri=name), content_hash(path))
    stereo = media.read_audio(path, video, 1.0, 2.2, 48_000, 2)
    mono = media.read_audio(path, video, 1.0, 2.2)
    assert check_sample(KEYS[0], members(0, video=mp4(stereo), audio=mono)) == []
    late = media.read_audio(path, video, 0.975, 2.175)
    (line,) = check_sample(KEYS[0], members(0, video=mp4(stereo), audio=late))
    assert line == "mp4 and flac: expected audio within 10 ms, found the mp4's 25 ms early"
