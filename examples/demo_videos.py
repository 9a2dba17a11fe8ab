"""The videos of `make demo`: `python -m examples.demo_videos FOLDER`.

Fourteen small files, good and bad: ten that are generated with known truth, and four sentences of real
speakers (see `examples/clips`). `truth.json` beside them says what curation should make of each: the status
of the source and, for every face in every shot, the reason codes. For generated videos it also says what they
are: rate, frames, cuts, how late the audio is, boxes of the faces and who speaks.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from examples.portraits import Framing, frame
from examples.speech import Speech, silence, speak
from examples.talking_heads import Take, cut, side_by_side, talk, write

log = logging.getLogger(__name__)

SIZE_PX = 640
"""Height of every frame, and width of all but that of two people."""

AUDIO_LATE_S = 0.48
"""How late the audio of `out_of_sync.mp4` is: twelve frames of 25 per second."""

BROKEN_BYTES = 2_000
"""What there is of `broken.mp4`: not even its index is whole."""

CLIPS = Path(__file__).with_name("clips")
"""The real speakers, under a licence of their own."""

_COLLINS = partial(
    speak,
    "Good morning, and welcome aboard. Today we will look at how a mouth moves when people speak. "
    "Lips meet for a moment, open wide for a vowel, and become round when we say who, or blue.",
    "en-us+f2",
)
_HOPPER = partial(
    speak,
    "Every program begins as a thought. Somebody writes it down, another person improves it, and "
    "before long nobody remembers how people ever managed without it. That always amuses me.",
    "en-us+linda",
    150,
)


@dataclass(frozen=True)
class Demo:
    """One file of the set.

    Attributes:
        what: a description for people.
        take: what it shows; None where the file is copied or is no video.
        status: status of the source that is expected.
        expected: one list of reason codes for each face of each shot; an empty list is a clip that is
            accepted.
        audio_late_s: how much later than the mouth its audio is.
        sound: whether it has an audio stream.
    """

    what: str
    take: Take | None
    status: str
    expected: tuple[tuple[str, ...], ...] = ()
    audio_late_s: float = 0.0
    sound: bool = True

    def truth(self) -> dict[str, Any]:
        """The row of `truth.json`."""
        row: dict[str, Any] = {"what": self.what, "status": self.status, "expected": self.expected}
        if self.take is None:
            return row
        edges = (0, *self.take.cuts, self.take.num_frames)
        faces = [
            {
                "frames": [first, last],
                "box": [round(float(edge), 1) for edge in np.median(face.box[first:last], 0)],
                "speaks": face.speaks,
            }
            for first, last in pairwise(edges)
            for face in self.take.faces
        ]
        return row | {
            "fps": self.take.fps,
            "num_frames": self.take.num_frames,
            "cuts": self.take.cuts,
            "audio_late_s": self.audio_late_s,
            # By how many frames the audio would have to be delayed.
            "sync_offset_frames": -round(self.audio_late_s * self.take.fps),
            "sound": self.sound,
            "faces": faces,
        }


def _shots(speech: Speech, size_px: int) -> Take:
    """One person in one studio: a wider shot, then a closer one farther to the side."""
    half_s = int(speech.duration_s * 25 / 2) / 25
    far = Framing(face_px=0.27 * size_px, centre=(0.45, 0.42))
    near = Framing(face_px=0.4 * size_px, centre=(0.56, 0.48))
    first = talk(frame("collins", size_px, size_px, far), speech.span(0, half_s), seed=3)
    then = talk(frame("collins", size_px, size_px, near), speech.span(half_s, 2 * half_s), seed=4)
    return cut(first, then)


def _pair(speech: Speech, size_px: int) -> Take:
    """Two people, of whom the one on the viewer's right speaks."""
    width_px, face = size_px * 3 // 4, Framing(face_px=0.36 * size_px)
    listener = talk(frame("hopper", width_px, size_px, face), silence(speech.duration_s), seed=5)
    speaker = talk(frame("collins", width_px, size_px, face), speech, seed=6)
    return side_by_side(listener, speaker)


def _good(size_px: int) -> dict[str, Demo]:
    collins, hopper = frame("collins", size_px, size_px), frame("hopper", size_px, size_px)
    one = talk(collins, _COLLINS(duration_s=8), seed=1)
    two = talk(hopper, _HOPPER(duration_s=8), seed=2)
    shots = _shots(_COLLINS(duration_s=10), size_px)
    return {
        "speaker_one.mp4": Demo("a woman speaking", one, "measured", ((),)),
        "speaker_two.mp4": Demo("another woman speaking", two, "measured", ((),)),
        # The second begins with what speaker_one.mp4 ends with: the same words from the same face.
        "cut.mp4": Demo("two shots of one person", shots, "measured", ((), ("near_duplicate",))),
    }


def _bad(size_px: int) -> dict[str, Demo]:
    collins, hopper = frame("collins", size_px, size_px), frame("hopper", size_px, size_px)
    silent = talk(hopper, silence(5), seed=7)
    late = talk(collins, _COLLINS(duration_s=9), seed=8)
    mute = talk(hopper, _HOPPER(duration_s=4), seed=9)
    pair = _pair(_COLLINS(duration_s=6), size_px)
    no_speech = (("no_speech",),)
    both = (
        ("multiple_faces", "mouth_still", "sync_unlikely", "sync_lost", "not_speaking"),
        ("multiple_faces",),
    )
    return {
        "silent.mp4": Demo("a woman who is silent", silent, "measured", no_speech),
        "out_of_sync.mp4": Demo(
            "the audio comes late",
            late,
            "measured",
            (("out_of_sync", "sync_unlikely"),),
            audio_late_s=AUDIO_LATE_S,
        ),
        "two_people.mp4": Demo("two people, one of whom speaks", pair, "measured", both),
        "no_audio.mp4": Demo("no audio stream", mute, "no_candidates", sound=False),
        "the same again.mp4": Demo("the same file again", None, "duplicate"),
        "broken.mp4": Demo("cut off while it was being copied", None, "failed"),
        "not_a_video.mp4": Demo("a text", None, "failed"),
    }


def real() -> dict[str, Demo]:
    """The real speakers: file name -> what it is."""
    kept = ((),)
    return {
        "grid_bbaf2n.mpg": Demo("a real man speaking", None, "measured", kept),
        "grid_brbk7n.mpg": Demo("a real woman speaking", None, "measured", kept),
        "grid_id2_swwp2s.mpg": Demo("another real man speaking", None, "measured", kept),
        "grid_lrwp9a.mpg": Demo("another real woman speaking", None, "measured", kept),
    }


def demos(size_px: int = SIZE_PX) -> dict[str, Demo]:
    """The set: file name -> what it is. Nothing is rendered yet."""
    return _good(size_px) | _bad(size_px) | real()


def make(folder: Path, size_px: int = SIZE_PX) -> dict[str, Demo]:
    """Write the set and `truth.json` into `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    films = demos(size_px)
    for name, demo in films.items():
        if demo.take is not None:
            log.info("%s: %s", name, demo.what)
            write(folder / name, demo.take, audio_offset_s=demo.audio_late_s, sound=demo.sound)
    for name in real():
        shutil.copyfile(CLIPS / name, folder / name)
    original = folder / "speaker_one.mp4"
    shutil.copyfile(original, folder / "the same again.mp4")
    (folder / "broken.mp4").write_bytes(original.read_bytes()[:BROKEN_BYTES])
    (folder / "not_a_video.mp4").write_text("This is a text that calls itself a video.\n", encoding="utf-8")
    truth = {name: demo.truth() for name, demo in films.items()}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return films


def main() -> None:
    """Command line: one argument, the folder."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_videos", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the videos go")
    folder = parser.parse_args().folder
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    films = make(folder)
    log.info("%d files and truth.json in %s", len(films), folder)


if __name__ == "__main__":
    main()
