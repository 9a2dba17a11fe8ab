"""From checkpoint to checkpoint: what is reported, and what ends a run."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from talkforge.schemas.errors import DatasetError
from talkforge.training import train as training
from talkforge.training.data.batch import Batch
from talkforge.training.run import checkpoint, loop, update
from talkforge.training.run.progress import Report, Validation
from talkforge.training.train import train
from tests.training.runs import Stop, four_clips, small
from tests.training.shard_files import Shown, write_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


def test_an_error_of_the_loader_ends_the_run_but_not_while_it_stops(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that ends the run may have ended the loader's processes before."""
    real, stopping = loop.SpanLoader.batches, []

    def broken(self: loop.SpanLoader, interval: int, skip: int = 0) -> Any:
        yield from itertools.islice(real(self, interval, skip), 2)
        stopping.append(True)
        raise DatasetError("the disk is gone")

    train(small(shards, tmp_path / "one", run__steps=1))
    train(small(shards, tmp_path / "two", run__steps=1))
    monkeypatch.setattr(loop.SpanLoader, "batches", broken)
    with pytest.raises(DatasetError, match=r"^the disk is gone$"):
        train(small(shards, tmp_path / "one"))
    assert [step for step, _ in checkpoint.steps(tmp_path / "one")] == [1]
    stopping.clear()
    result = train(small(shards, tmp_path / "two"), stop=lambda: bool(stopping))
    assert result.step == 3 and not result.finished
    assert [step for step, _ in checkpoint.steps(tmp_path / "two")] == [1, 3]


def test_validation_samples_are_videos(shards: str, tmp_path: Path) -> None:
    config = small(
        shards, tmp_path, run__steps=2, run__validate_every=2, run__validation_samples=1,
        run__validation_measures=False,
    )  # fmt: skip
    plain = train(small(shards, tmp_path / "plain", run__steps=2))
    result = train(config)
    (video,) = (tmp_path / "samples" / "step-00000002").iterdir()
    assert video.suffix == ".mp4" and b"ftyp" in video.read_bytes()[:16]
    assert [report.loss for report in result.history] == [report.loss for report in plain.history]


def test_the_curve_of_validation_goes_on_where_a_run_is_resumed(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*given: Any) -> Validation:
        folder: Path = given[-2]
        return Validation([folder / "a.mp4"], {"lip_aperture_r": float(folder.name[-1]) / 10})

    monkeypatch.setattr(training, "preview", measured)
    changes = {"run__validate_every": 2, "run__save_every": 3}
    stopped = train(small(shards, tmp_path, **changes), stop=Stop(5))
    assert stopped.step == 5
    (tmp_path / "validation.csv").open("a").write("6,1,0.9\n")  # of a step that is taken again
    assert train(small(shards, tmp_path, **changes)).finished
    assert (tmp_path / "validation.csv").read_text(encoding="utf-8").splitlines() == [
        "step,videos,lip_aperture_r", "2,1,0.2", "4,1,0.4", "6,1,0.6",
    ]  # fmt: skip


def test_a_curve_that_cannot_be_written_does_not_end_the_run(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "preview", lambda *_: Validation([tmp_path], {"jitter": 1.0}))
    (tmp_path / "validation.csv").mkdir()
    with caplog.at_level(logging.WARNING, "talkforge.training.run.loop"):
        assert train(small(shards, tmp_path, run__steps=2, run__validate_every=1)).finished
    assert caplog.text.count("validation.csv: cannot be written: Is a directory") == 2


def test_reports_are_of_all_that_was_done(shards: str, tmp_path: Path) -> None:
    shown: list[Report] = []
    result = train(small(shards, tmp_path, run__log_every=4, optim__accumulate=2), show=shown.append)
    assert [report.step for report in shown] == [4, 6] and shown == result.history
    assert shown[0].steps == 6 and shown[0].lr == 0.01 and shown[0].masked_fraction == 0
    assert shown[-1].left_s == 0 and shown[0].samples_per_s == shown[0].samples_per_s_rank > 0
    assert shown[0].loss == shown[0].unmasked != shown[0].lips
    assert 0 <= shown[0].wait_fraction <= 1


def test_skipped_samples_are_counted(tmp_path: Path) -> None:
    shards = write_set(
        tmp_path / "set", [[Shown(1), Shown(2), Shown(3)]], changes={"clip02": {"speech.npy": b"nothing"}}
    )
    result = train(small(shards, tmp_path / "run", run__steps=3))
    assert result.skipped.total() == 1 and result.history[-1].skipped_samples == 1
    assert "skipped samples 1" in result.history[-1].line()


@pytest.mark.parametrize("stage", ("clip", "frame"))
def test_clips_of_two_lengths_train_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    clips = [[Shown(1), Shown(2, num_frames=7)], [Shown(3), Shown(4, num_frames=6)]]
    config = small(
        write_set(tmp_path / "set", clips), tmp_path / "run", run__steps=8, run__stage=stage,
        run__validate_every=8, data__num_frames=9, data__shorter_spans=[5],
    )  # fmt: skip
    real, seen = update.training_step, []

    def counting(model: Any, encoders: Any, batch: Batch, *rest: Any, **options: Any) -> Any:
        seen.append((batch.num_frames, batch.size))
        return real(model, encoders, batch, *rest, **options)

    monkeypatch.setattr(update, "training_step", counting)
    result = train(config)
    assert result.finished and not result.skipped and set(seen) == {(9, 2), (5, 2)}
    assert len(list((tmp_path / "run" / "samples" / "step-00000008").iterdir())) == 2
