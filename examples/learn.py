"""`make learn`: the proof that the trainer learns to speak, from nothing, on two processors.

Talking heads whose mouths follow known speech are generated, curated into shards by `talkforge curate`,
and learnt by the tiny preset through both stages. Then the model speaks to audio that it was not trained on,
and what its mouths do is compared with the truth, figure by figure; the exit code is 1 where a bound is
missed. `--short` is what the test suite runs. `--faces` proves the branches of identity and motion instead,
on people who lie between two of six, without a bound on their lips.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from examples import learn_videos
from examples.learn_figures import Examiner, FaceFigures, Figures, Shown
from examples.speech import SPEECH_HZ
from talkforge.curation.media.encode import encode_mp4
from talkforge.display import Display
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.errors import DatasetError
from talkforge.training.config import load_train_config
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.train import train

OUT = Path("learn-out")
CURATION = Path("configs/offline.yaml")
STAGES = (Path("configs/train/tiny-stage1.yaml"), Path("configs/train/tiny-stage2.yaml"))

HELD_OUT = 0.1
"""Share of the clips that are kept for the held-out loss."""

ENLARGED = 3
"""The frames that are kept are this much larger than generated."""


@dataclass(frozen=True)
class Row:
    """One figure beside its bounds."""

    name: str
    value: float
    least: float = -np.inf
    most: float = np.inf

    @property
    def holds(self) -> bool:
        """Whether the value lies within; what is no number never does."""
        return bool(self.least <= self.value <= self.most)

    @property
    def kept(self) -> str:
        """Yes or no, for people; empty where anything goes."""
        return ("yes" if self.holds else "NO") if self.bound else ""

    @property
    def bound(self) -> str:
        """In words; empty where anything goes."""
        if np.isfinite(self.least) and np.isfinite(self.most):
            return f"{self.least:g} to {self.most:g}"
        if np.isfinite(self.least):
            return f"at least {self.least:g}"
        return f"at most {self.most:g}" if np.isfinite(self.most) else ""


@dataclass(frozen=True)
class Bounds:
    """What the figures must keep to; see `learn_figures.Figures`."""

    own: float
    swapped: float
    clip_stage: float
    lips_loss: float
    silence: float
    amplitude: tuple[float, float]
    motion: float
    shuffled: float = 0.15
    reader: float = 0.95

    def rows(self, found: Figures) -> list[Row]:
        """The table."""
        still, neutral, lively = found.motion
        return [
            Row("openings read from true videos: correlation with the truth", found.reader, self.reader),
            Row("stage 2: correlation of generated with true opening", found.own, self.own),
            Row("shuffled speech: the same, absolute", abs(found.shuffled), most=self.shuffled),
            Row(
                "swapped speech: r(given) - r(own)",
                found.swapped_to_given - found.swapped_to_own,
                self.swapped,
            ),
            Row("swapped speech: r(given)", found.swapped_to_given),
            Row("stage 1 alone: correlation", found.clip_stage, most=self.clip_stage),
            Row("lip-region loss, end of stage 2 / end of stage 1", found.lips_loss, most=self.lips_loss),
            Row("mean opening in silence, of 1", found.silence, most=self.silence),
            Row("mean opening in speech, of 1", found.speaking),
            Row("amplitude, generated / true", found.amplitude, *self.amplitude),
            Row("motion outside the mouth, omega 1 / omega 0", lively / still, self.motion),
            Row("motion outside the mouth, omega 0.5 / omega 0", neutral / still),
        ]


@dataclass(frozen=True)
class FaceBounds:
    """What the figures of faces and motion must keep to; see `learn_figures.FaceFigures`."""

    brows: float
    head: float
    alone: float
    nobody: tuple[float, float]
    no_audio: float
    reader: float
    face_db: float
    mouth_db: float

    def rows(self, found: FaceFigures) -> list[Row]:
        """The table."""
        return [
            Row("codec: PSNR of the face, dB", found.face_db[0]),
            Row("codec: the same, above the linear codec's", found.face_db[1], self.face_db),
            Row("codec: PSNR of the mouth, dB", found.mouth_db[0]),
            Row("codec: the same, above the linear codec's", found.mouth_db[1], self.mouth_db),
            Row("identity alone: fraction of others that are less alike", found.alone.rank, self.alone),
            Row("identity alone: similarity to it minus that to others", found.alone.margin),
            Row("neither image nor identity: others that are less alike", found.nobody.rank, *self.nobody),
            Row("true frames: others that are less alike", found.true.rank),
            Row("true frames: similarity minus that to others", found.true.margin),
            *_motion_rows("brows by omega of the face", found.brows, self.brows),
            Row("motion of the brows: read from true videos, r", found.motion_reader[0], self.reader),
            *_motion_rows("head by omega of the body", found.head, self.head),
            Row("motion of the head: read from true videos, r", found.motion_reader[1], self.reader),
            Row("correlation of generated with true opening", found.own),
            Row("audio dropped: the same, absolute", abs(found.no_audio), most=self.no_audio),
        ]


def _motion_rows(what: str, found: tuple[float, float, float], least: float) -> tuple[Row, ...]:
    """Motion at omega 0, 0.5 and 1 rises at every step, and by the factor `least` over both."""
    still, neutral, lively = found
    return (
        Row(f"motion of the {what}: 1 / 0", lively / still, least),
        Row(f"motion of the {what}: 0.5 / 0", neutral / still, 1.0),
        Row(f"motion of the {what}: 1 / 0.5", lively / neutral, 1.0),
    )


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        clips: videos generated, of `clip_s` seconds each. steps: of either stage. unseen: windows tested.
        threads: of torch in training; 0: as many as torch likes. Two wait for each other at every turn,
            which is ten times slower than one wherever something else is running.
        many: of whom the videos are, see `learn_videos.scene`. With many, clips have identities.
        settings: further ones of both stages.
    """

    clips: int
    clip_s: float
    steps: tuple[int, int]
    unseen: int
    threads: int
    bounds: Bounds | FaceBounds
    many: bool = False
    settings: tuple[str, ...] = ()


FULL = Plan(
    clips=120,
    clip_s=5.0,
    steps=(1500, 6000),
    unseen=64,
    threads=0,
    bounds=Bounds(
        own=0.8, swapped=0.6, clip_stage=0.3, lips_loss=0.7, silence=0.08, amplitude=(0.6, 1.5), motion=1.5
    ),
)
SHORT = Plan(
    clips=48,
    clip_s=5.0,
    steps=(200, 950),
    unseen=32,
    threads=1,
    bounds=Bounds(
        own=0.6,
        swapped=0.4,
        clip_stage=np.inf,
        lips_loss=np.inf,
        silence=0.12,
        amplitude=(0.5, 1.8),
        motion=1.3,
    ),
    settings=("codec.kind=linear", "codec.fit_steps=600"),  # a decoder would take as long to fit as all this
)
FACES = Plan(
    clips=60,
    clip_s=5.0,
    steps=(500, 900),
    unseen=32,
    threads=1,
    bounds=FaceBounds(
        brows=1.15,
        head=1.15,
        alone=0.6,
        nobody=(0.35, 0.65),
        no_audio=0.15,
        reader=0.95,
        face_db=1.0,
        mouth_db=0.5,
    ),
    many=True,
    settings=(
        "adapters.face=true",
        "adapters.face_tokens=4",
        "adapters.face_depth=2",
        "adapters.face_dim=64",
        "adapters.face_heads=4",
        # Without samples that have the identity and not the image, nothing is learnt from it.
        "dropout.image=0.4",
        "dropout.identity=0.1",
    ),
)


def curate(videos: Path, dataset: Path, console: Console, many: bool = False) -> None:
    """Videos to shards, by the command that a user would type; `many` as of `learn_videos.scene`."""
    command: list[str | Path] = ["curate", videos, "--out", dataset, "--config", CURATION]
    # With face recognition, both portraits' clips would be two people, and held out together. Whoever lies
    # between two of many is like both, so that all clips would be one person's.
    model = "dlib" if many else "none"
    command += ["--set", f"measure.identity.model={model}", "--set", f"shards.validation_fraction={HELD_OUT}"]
    command += ["--set", "shards.same_person=1"] if many else []
    console.print(" ".join(["talkforge", *map(str, command)]), soft_wrap=True)
    subprocess.run([Path(sys.executable).with_name("talkforge"), *command], check=True)


def accepted(dataset: Path) -> tuple[int, int]:
    """Clips that were accepted, and all."""
    verdicts = pq.read_table(dataset / "ledger.parquet", columns=["accepted"])["accepted"].to_pylist()
    return sum(verdicts), len(verdicts)


def shards(dataset: Path, split: str) -> str:
    """The shards of a split, as the trainer takes them.

    Raises:
        DatasetError: there are none: no clip was accepted, or none held out.
    """
    count = len(list((dataset / "shards").glob(f"{split}-*.tar")))
    if not count:
        raise DatasetError(f"{dataset}/shards: expected {split} shards, found none")
    return f"{dataset}/shards/{split}-{{000000..{count - 1:06d}}}.tar"


def learn(plan: Plan, dataset: Path, out: Path, seed: int, console: Console) -> tuple[Path, Path]:
    """Both stages; the folders of their runs."""
    runs = out / "stage1", out / "stage2"
    for stage, (config, run, steps) in enumerate(zip(STAGES, runs, plan.steps, strict=True), 1):
        settings = [
            f"data.shards={shards(dataset, 'train')}",
            f"data.validation_shards={shards(dataset, 'validation')}",
            f"run.out={run}",
            f"run.steps={steps}",
            f"run.save_every={steps}",
            f"run.seed={seed}",
            f"run.threads={plan.threads}",
            *plan.settings,
        ]
        if stage == 2:
            settings.append(f"run.init_from={runs[0]}")
        console.print(
            f"talkforge train {config} {' '.join(f'--set {one}' for one in settings)}", soft_wrap=True
        )
        with Display(console) as display:
            train(load_train_config(config, settings), show=lambda one: display.show(one.progress()))
    return runs


def examine(plan: Plan, runs: tuple[Path, Path]) -> tuple[list[Row], Shown]:
    """The table of two runs, and what stage 2 generated."""
    clip_stage, frame_stage = (GenerationPipeline.load(run, "cpu") for run in runs)
    examiner = Examiner(frame_stage, plan.unseen, plan.many)
    if isinstance(plan.bounds, FaceBounds):
        of_faces, shown = examiner.face_figures(frame_stage)
        return plan.bounds.rows(of_faces), shown
    found, shown = examiner.figures(clip_stage, frame_stage)
    return plan.bounds.rows(found), shown


def keep(shown: Shown, folder: Path, heads: int = 6, columns: int = 7) -> None:
    """`strip.png` and `heads.mp4`: generated above, and on the left; the truth below, and on the right.

    The last two rows of the strip are faces generated from an identity alone, and whose it is, if any were.
    """
    pairs = list(zip(shown.videos, shown.windows, strict=True))[:heads]
    rows = []
    for video, one in pairs[:3]:
        rows += [np.hstack(list(frames[:: len(frames) // columns][:columns])) for frames in (video, one.rgb)]
    asked = shown.windows[1:] + shown.windows[:1]
    for faces in (
        ([one[len(one) // 2] for one in shown.alone], [one.portrait for one in asked]) if shown.alone else ()
    ):
        row = np.hstack(faces[:columns])
        rows.append(np.pad(row, ((0, 0), (0, rows[0].shape[1] - row.shape[1]), (0, 0))))
    cv2.imwrite(str(folder / "strip.png"), _enlarged(np.vstack(rows), 2)[..., ::-1])
    videos = [np.concatenate([video, one.rgb], axis=2) for video, one in pairs]
    frames = [_enlarged(frame, ENLARGED) for video in videos for frame in video]
    samples = round(len(pairs[0][0]) / learn_videos.FPS * SPEECH_HZ)
    sound: Floats = np.concatenate([one.sound[:samples] for _, one in pairs])
    encode_mp4(folder / "heads.mp4", frames, learn_videos.FPS, sound, 23, "medium")


def _enlarged(frame: Bytes, times: int) -> Bytes:
    return np.asarray(cv2.resize(frame, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC), np.uint8)


def report(rows: list[Row], took_s: dict[str, float]) -> str:
    """The table and the times, in Markdown."""
    lines = ["| figure, on unseen speech | found | bound | kept |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {row.value:.3f} | {row.bound} | {row.kept} |" for row in rows]
    lines += ["", *(f"- {what}: {seconds:.0f} s" for what, seconds in took_s.items()), ""]
    return "\n".join(lines)


def prove(plan: Plan, out: Path, seed: int, console: Console) -> list[Row]:
    """Everything from the videos to the table; `out` is made anew."""
    shutil.rmtree(out, ignore_errors=True)
    took_s: dict[str, float] = {}
    begin_s = time.monotonic()

    def done(what: str) -> None:
        took_s[what] = time.monotonic() - begin_s - sum(took_s.values())

    console.print(f"1. generating {plan.clips} talking heads, {plan.clip_s:g} s each")
    learn_videos.make(out / "videos", plan.clips, plan.clip_s, plan.many)
    done("videos")
    console.print("2. curating them into shards")
    curate(out / "videos", out / "dataset", console, plan.many)
    good, all_clips = accepted(out / "dataset")
    done("curation")
    console.print(f"3. training on {good} of {all_clips} clips")
    runs = learn(plan, out / "dataset", out, seed, console)
    done("training")
    console.print("4. speaking to audio that was never trained on")
    found, shown = examine(plan, runs)
    done("generating and measuring")
    rows = [Row("clips accepted by curation, of 1", good / plan.clips, 0.95), *found]
    keep(shown, out)
    (out / "learns.md").write_text(report(rows, took_s), encoding="utf-8")
    return rows


def main() -> int:
    """Run in the current folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="examples.learn", description=__doc__.partition("\n")[0])
    plans = parser.add_mutually_exclusive_group()
    plans.add_argument("--short", action="store_true", help="two minutes of training, wider bounds")
    plans.add_argument("--faces", action="store_true", help="identity and motion, not lips")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console()
    begin_s = time.monotonic()
    plan = FACES if options.faces else SHORT if options.short else FULL
    rows = prove(plan, OUT, options.seed, console)
    table = Table("figure, on unseen speech", "found", "bound", "kept", box=None)
    for row in rows:
        table.add_row(row.name, f"{row.value:.3f}", row.bound, row.kept)
    console.print(table)
    console.print(f"{OUT}/learns.md, strip.png, heads.mp4; {time.monotonic() - begin_s:.0f} s in all")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
