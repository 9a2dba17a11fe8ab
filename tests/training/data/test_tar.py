"""Samples out of shards, whole and damaged, near and far."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import fsspec
import pytest

from talkforge.schemas.tar import Sample, tar_writer, write_sample
from talkforge.training.data.tar import BrokenShardError, beside, read_files, read_joined, read_samples

WANTED = ("json", "mp4", "lips.npz")


def write_tar(path: Path, keys: str, members: dict[str, bytes]) -> str:
    """A shard with one sample a letter; its members are followed by the letter."""
    with path.open("wb") as stream, tar_writer(stream) as tar:
        for key in keys:
            write_sample(tar, key, {name: data + key.encode() for name, data in members.items()})
    return str(path)


@pytest.fixture
def shard(tmp_path: Path) -> str:
    return write_tar(tmp_path / "s.tar", "abcd", {"flac": b"x" * 3000, "json": b"j", "mp4": b"m" * 2000})


def test_a_sample_has_the_members_that_are_wanted(shard: str) -> None:
    found = list(read_samples(shard, WANTED))
    assert [key for key, _ in found] == list("abcd")
    assert found[1][1] == {"json": b"jb", "mp4": b"m" * 2000 + b"b"}
    assert list(read_samples(shard, ("mp4.",))) == [(key, {}) for key in "abcd"]


def test_anywhere_that_fsspec_reaches(shard: str) -> None:
    with fsspec.open("memory://reading/s.tar", "wb") as file:
        file.write(Path(shard).read_bytes())
    assert list(read_samples("memory://reading/s.tar", WANTED)) == list(read_samples(shard, WANTED))


def until_broken(path: str) -> tuple[list[Sample], str]:
    found: list[Sample] = []
    try:
        for sample in read_samples(path, WANTED):
            found.append(sample)
    except BrokenShardError as error:
        return found, str(error)
    return found, ""


def test_a_shard_that_breaks_off_gives_what_is_before(shard: str, tmp_path: Path) -> None:
    data = Path(shard).read_bytes()
    whole = list(read_samples(shard, WANTED))
    with tarfile.open(shard) as tar:
        data_of = [(info.offset_data, info.offset_data + info.size) for info in tar]
    ends = [end for _, end in data_of]
    broken = tmp_path / "broken.tar"
    for cut in range(0, ends[-1], 256):
        broken.write_bytes(data[:cut])
        found, why = until_broken(str(broken))
        complete = sum(cut >= -(-end // 512) * 512 for end in ends) // 3
        assert found[:complete] == whole[:complete]
        if any(begin < cut < end for begin, end in data_of):
            assert why == f"{broken}: expected a whole tar file, found a damaged one (unexpected end of data)"
        # Between two members a tar file ends without anyone noticing: hence the manifest.
        for (key, members), (expected, parts) in zip(found[complete:], whole[complete:], strict=False):
            assert key == expected and members.items() <= parts.items()
        assert len(found) <= complete + 1


def test_other_bytes_are_no_shard(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"This is not a tar file." * 100)
    why = "expected a whole tar file, found a damaged one (invalid header)"
    assert until_broken(str(tmp_path / "s.tar")) == ([], f"{tmp_path}/s.tar: {why}")


def test_a_member_that_occurs_twice_breaks_a_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("a.json", "b.json", "b.json"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    found, why = until_broken(str(tmp_path / "s.tar"))
    assert [key for key, _ in found] == ["a"]
    assert why == f"{tmp_path}/s.tar: sample b: expected json once, found it twice"


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(read_samples(str(tmp_path / "s.tar"), WANTED))


@pytest.mark.parametrize("there", ("abcd", "bd", "a", "", "c"))
def test_latents_join_the_samples_they_belong_to(shard: str, tmp_path: Path, there: str) -> None:
    latents = write_tar(tmp_path / "l.tar", there, {"latents.npz": b"l"})
    joined = list(read_joined(shard, WANTED, latents))
    assert [key for key, _ in joined] == list("abcd")
    found = {key: members.get("latents.npz") for key, members in joined}
    assert found == {key: b"l" + key.encode() if key in there else None for key in "abcd"}
    alone = [(key, {k: v for k, v in members.items() if k != "latents.npz"}) for key, members in joined]
    assert alone == list(read_samples(shard, WANTED))


def test_latents_that_break_off_are_missing_from_there_on(shard: str, tmp_path: Path) -> None:
    latents = write_tar(tmp_path / "l.tar", "abcd", {"latents.npz": b"l" * 600})
    with tarfile.open(latents) as tar:
        third = tar.getmembers()[2].offset_data
    Path(latents).write_bytes(Path(latents).read_bytes()[: third + 100])
    joined = dict(read_joined(shard, WANTED, latents))
    assert [key for key, members in joined.items() if "latents.npz" in members] == ["a", "b"]


@pytest.mark.parametrize(
    ("shard", "expected"),
    (
        ("/data/set/shards/x.tar", "/data/set/latents/y"),
        ("s3://bucket/set/shards/x.tar", "s3://bucket/set/latents/y"),
        ("shards/x.tar", "latents/y"),
        ("x.tar", "../latents/y"),
    ),
)
def test_beside(shard: str, expected: str) -> None:
    assert beside(shard, "latents/y") == expected


def test_small_files_are_read_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a[0].json").write_bytes(b"1")
    with fsspec.open("memory://reading/b.json", "wb") as file:
        file.write(b"2")
    names = [
        str(tmp_path / "a[0].json"), "memory://reading/b.json", "memory://reading/none.json",
        str(tmp_path / "none.json"), str(tmp_path), "nonsense://x/y.json",
    ]  # fmt: skip
    found = read_files(names)
    assert found[:2] == [b"1", b"2"]
    assert [type(error) for error in found[2:4]] == [FileNotFoundError] * 2
    assert all(isinstance(error, Exception) for error in itertools.islice(found, 4, None))
    assert read_files([]) == []
