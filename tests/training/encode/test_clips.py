"""What `latents.npz` holds: the encoders' own output, for spans of known frames."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from talkforge.schemas.errors import DatasetError, RunError
from talkforge.training.config import TrainConfig
from talkforge.training.data.frames import DecodedVideo, EncodedVideo
from talkforge.training.data.shards import shard_list
from talkforge.training.data.spans import MEMBERS, decode_sample
from talkforge.training.data.stream import SkippedSample
from talkforge.training.data.tar import read_samples
from talkforge.training.encode.clips import COVER, ClipEncoder, EncodedClip, first_frames, npz
from talkforge.training.wan.codec import load_codec, training_dtype
from talkforge.training.wan.encoders import Encoders, load_encoders
from tests.training.batches import some_info
from tests.training.shard_files import IDENTITY_DIM, SPEECH_DIM, Shown, write_set
from tests.training.tiny_base import TEXT_DIM, write_base

CPU = torch.device("cpu")
INFO = some_info(SPEECH_DIM, IDENTITY_DIM)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    clips = [Shown(0, text="a person"), Shown(1, num_frames=5), Shown(2, width_px=96), Shown(3, num_frames=9)]
    folder = tmp_path_factory.mktemp("set")
    return shard_list(write_set(folder, [clips]))[0][0]


def config(base: Path, **codec: str) -> TrainConfig:
    data = {"num_frames": 9, "sizes": [[32, 32], [32, 48]]}
    return TrainConfig.model_validate({"model": {"base": str(base)}, "codec": codec, "data": data})


def encoder(settings: TrainConfig, spans: int = 2, **parts: Any) -> tuple[ClipEncoder, Encoders]:
    encoders = load_encoders(settings, TEXT_DIM, CPU)
    for name, part in parts.items():
        object.__setattr__(encoders, name, part)
    return ClipEncoder(settings, INFO, spans, encoders, CPU), encoders


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    ((9, 1, [0]), (9, 4, [0]), (10, 1, [1]), (29, 1, [10]), (29, 3, [3, 10, 17]), (11, 5, [0, 1, 2])),
)
def test_spans_are_spread_evenly(frames: int, count: int, expected: list[int]) -> None:
    assert first_frames(frames, 9, count) == expected


def test_every_clip_is_encoded_as_training_would(base: Path, shard: str) -> None:
    settings = config(base)
    made, encoders = encoder(settings)
    found = list(made.shard(shard))
    clips = {one.key: one.arrays for one in found if isinstance(one, EncodedClip)}
    assert [one.key for one in found] == ["clip00", "clip01", "clip02", "clip03"]
    assert list(clips) == ["clip00", "clip02", "clip03"]
    assert isinstance(found[1], SkippedSample) and found[1].reason == "too_short"
    assert encoders.image is not None
    for key, members in read_samples(shard, MEMBERS):
        if key not in clips:
            continue
        arrays = clips[key]
        clip = decode_sample(key, members, settings.data.sizes, (9,), INFO)
        firsts = [0] if key == "clip03" else [5, 16]
        assert arrays["first_frame"].tolist() == firsts and arrays["first_frame"].dtype == np.int32
        for k, first in enumerate(firsts):
            rgb = torch.from_numpy(np.array(clip.span(first).rgb))[None]
            seed = int.from_bytes(hashlib.sha256(f"{key}+{first}".encode()).digest()[:7], "big")
            drawn = encoders.codec.encode(rgb, torch.Generator().manual_seed(seed))
            assert not torch.equal(drawn, encoders.codec.encode(rgb))  # a sample, not the mode
            same(arrays["latents"][k], drawn[0])
            same(arrays["condition"][k], encoders.codec.condition(rgb[:, 0], 9)[0])
            same(arrays["image"][k], encoders.image.encode(rgb[:, 0])[0])
        text, empty = encoders.text.encode([clip.text, ""])
        length = 3 if key == "clip00" else 1  # tokens, and the end of the prompt
        same(arrays["text"], text[:length])
        same(arrays["empty_text"], empty[:1])
        assert text[length:].abs().max() == 0


@pytest.mark.parametrize(("spans", "whole"), ((1, []), (2, ["clip00", "clip02"])))
def test_a_clip_is_decoded_once_for_all_its_spans(
    base: Path, shard: str, monkeypatch: pytest.MonkeyPatch, spans: int, whole: list[str]
) -> None:
    decoded: list[str] = []
    original = EncodedVideo.decoded

    def counting(video: EncodedVideo) -> DecodedVideo:
        decoded.append(video.key)
        return original(video)

    monkeypatch.setattr(EncodedVideo, "decoded", counting)
    found = list(encoder(config(base, text="none", image="none"), spans)[0].shard(shard))
    assert [one.key for one in found] == ["clip00", "clip01", "clip02", "clip03"]
    assert decoded == whole


def same(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.dtype == np.float16 and found.shape == tuple(expected.shape)
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=2e-3, atol=2e-3)


def test_only_what_there_is(base: Path, shard: str) -> None:
    made, _ = encoder(config(base, text="none", image="none"))
    first = next(made.shard(shard))
    assert isinstance(first, EncodedClip) and set(first.arrays) == {"first_frame", "latents", "condition"}


def test_an_npz_depends_on_its_arrays_alone() -> None:
    arrays = {"a": np.arange(3, dtype=np.float16), "b": np.zeros((2, 0), np.float16)}
    assert npz(arrays) == npz(arrays)
    with np.load(io.BytesIO(npz(arrays)), allow_pickle=False) as stored:
        assert stored["a"].tolist() == [0, 1, 2] and stored["b"].shape == (2, 0)
    with pytest.raises(ValueError, match="pickle"):
        npz({"a": np.array([{}], object)})


def test_what_cannot_be_read_is_one_line(base: Path, shard: str, tmp_path: Path) -> None:
    made, _ = encoder(config(base))
    with pytest.raises(DatasetError, match=r"gone.tar: .*No such file"):
        list(made.shard(str(tmp_path / "gone.tar")))
    data = Path(shard).read_bytes()
    (tmp_path / "short.tar").write_bytes(data[: data.index(b"clip02.") // 512 * 512 + 2000])
    assert [one.key for one in made.shard(str(tmp_path / "short.tar"))] == ["clip00", "clip01"]


def test_a_span_that_does_not_fit_on_the_device_is_one_line(base: Path, shard: str) -> None:
    class Large:
        def encode(self, *_: object) -> Iterator[None]:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    made, _ = encoder(config(base), codec=Large())
    with pytest.raises(RunError, match=r"^cpu: not enough memory to encode 9 frames of 32 x 32 px$"):
        list(made.shard(shard))


@pytest.mark.parametrize("frames", (9, 10, 17, 18, 19, 27, 28, 250))
def test_spans_cover_a_clip_with_as_few_as_it_takes(frames: int) -> None:
    firsts = first_frames(frames, 9, COVER)
    assert firsts[0] == 0 and firsts[-1] == frames - 9 and len(firsts) == math.ceil(frames / 9)
    assert {first + k for first in firsts for k in range(9)} == set(range(frames))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ("no", "bf16"))
def test_a_gpu_gives_nearly_the_same(base: Path, shard: str, precision: str) -> None:
    settings = config(base)
    expected = next(encoder(settings)[0].shard(shard))
    halved = settings.model_copy(update={"run": settings.run.model_copy(update={"precision": precision})})
    device = torch.device("cuda")
    codec = load_codec(halved, training_dtype(halved, device))
    made = ClipEncoder(halved, INFO, 2, load_encoders(halved, TEXT_DIM, device, codec=codec), device)
    found = next(made.shard(shard))
    assert isinstance(expected, EncodedClip) and isinstance(found, EncodedClip)
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_allclose(found.arrays[name], array, atol=2e-2 if precision == "no" else 0.2)
