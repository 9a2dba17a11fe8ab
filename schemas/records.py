"""The records, in the order in which they flow.

    Input -> Video -> Scene -> Track -> Clip -> measurements -> Verdict
    anything that goes wrong -> Failure

A record is immutable and holds no arrays: it is what Parquet and JSON hold. Arrays travel in the frozen
dataclasses of `schemas.arrays`. The fields of the measurements are columns of the ledger, under the same
names. The string below a field describes it in `docs/dataset.md` and in the Parquet files; its unit is in
its name or in `schemas.columns`.

Times before `Clip` are seconds of the source. From `Clip` on they are frames at the data set's constant rate.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from talkforge.schemas import units
from talkforge.schemas.errors import DatasetError, FailureKind, first_invalid


class Record(BaseModel):
    """An immutable row that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def from_json(cls, data: bytes, file: str, expected: str = "") -> Self:
        """The record that a file of a data set holds as JSON.

        Args:
            data: content of the file.
            file: what messages call it.
            expected: what messages say was expected, such as `a failure`.

        Raises:
            DatasetError: it is no such record.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            wrong = first_invalid(error)
            what = f"expected {expected}, found {wrong}" if expected else wrong
            raise DatasetError(f"{file}: {what}") from None


InputKey = tuple[str, float, float]
"""Tells inputs apart, and sorts them by name and time: uri, and the span that is used, source seconds."""


class ListedColumn(Record):
    """A further column of a list and its value for one input."""

    name: str
    value: str


class Input(Record):
    """One input as the user named it, with what the user said of it: a file, or a span of one."""

    uri: str
    """Absolute path or URI."""
    source: str = ""
    """Where the footage comes from, as the user says."""
    licence: str = ""
    """Licence of the footage, as the user says."""
    consent: str = ""
    """Consent of the people shown, as the user says."""
    person: str = ""
    """Who is seen, by the name that the list of inputs gives; empty where it gives none."""
    start_s: float | None = None
    """Start of the span of the file that is used, in the source; None: the beginning of the file."""
    end_s: float | None = None
    """End of the span of the file that is used, in the source; None: the end of the file."""
    audio_track: int | None = None
    """Audio track that is used, from 0, as the list of inputs says; None: the one with the most speech."""
    columns: tuple[ListedColumn, ...] = ()
    """Further columns of the list, as texts."""
    problem: str = ""
    """Why the row of the list cannot be used; empty where it can."""

    @property
    def span_s(self) -> tuple[float, float]:
        """The span of the file that is used, source seconds; without bounds where none were given."""
        return (
            -math.inf if self.start_s is None else self.start_s,
            math.inf if self.end_s is None else self.end_s,
        )

    @property
    def key(self) -> InputKey:
        """Tells inputs apart."""
        return (self.uri, *self.span_s)


class Video(Record):
    """What the container of one video file says.

    Sizes are those of the image as it should be shown: after rotation and with square pixels. Times are
    seconds of the source, 0 at the container's start time.
    """

    video_id: str
    """Key of the video: the first 12 hex digits of its sha256."""
    sha256: str
    """sha256 of the file, 64 hex digits."""
    uri: str
    """Path or URI of the input."""
    num_bytes: int
    """Size of the file."""
    source: str = ""
    """Where the footage comes from, as the user says."""
    licence: str = ""
    """Licence of the footage, as the user says."""
    consent: str = ""
    """Consent of the people shown, as the user says."""
    container: str
    """Container format, in FFmpeg's words."""
    video_codec: str
    """Codec of the video stream, in FFmpeg's words."""
    pixel_format: str
    """Pixel format, in FFmpeg's words."""
    width_px: int
    """Width of the image as it should be shown."""
    height_px: int
    """Height of the image as it should be shown."""
    coded_width_px: int
    """Width of the image as it is coded."""
    coded_height_px: int
    """Height of the image as it is coded."""
    rotation_deg: int
    """Clockwise rotation to apply for display: 0, 90, 180 or 270."""
    sample_aspect_ratio: float
    """Width of a coded pixel over its height."""
    fps: float
    """Average frame rate of the stream."""
    fps_nominal: float
    """Frame rate that the container declares; differs from `fps` where the rate varies."""
    start_s: float
    """Instant of the first frame."""
    end_s: float
    """End of the last frame as far as the container says; may lie beyond what can be decoded."""
    audio_codec: str = ""
    """Codec of the audio stream, in FFmpeg's words; empty without audio."""
    audio_hz: int = 0
    """Sample rate of the audio stream; 0 without audio."""
    audio_channels: int = 0
    """Channels of the audio stream; 0 without audio."""
    audio_start_s: float | None = None
    """Instant of the first audio sample; None where the file has no audio stream."""
    mirrored: bool = False
    """Whether the frame is flipped top to bottom before it is rotated, by the file's display matrix."""
    interlaced: bool = False
    """Whether frames are deinterlaced when they are read."""
    hdr: str = ""
    """Transfer function of high dynamic range, "hlg" or "pq", else empty. Such videos are not measured."""
    audio_tracks: int = 0
    """Audio streams of the file that can be decoded."""
    audio_track: int | None = None
    """Which of them is used, from 0; None in data sets made before it was chosen: the default one."""
    audio_channel: Literal["mix", "left", "right"] = "mix"
    """Which channel is used: the mean of all, or one of a stereo pair whose mean is silence."""
    audio_end_s: float | None = None
    """End of the audio in source seconds; None without audio, or in data sets made before it was kept."""
    gaps_s: tuple[float, ...] = ()
    """Starts and ends, in turn, of spans without video: no clip touches them."""
    repaired_outliers: int = 0
    """Frames whose wrong timestamp was replaced; see `curation.media.timeline`."""
    repaired_repeats: int = 0
    """Frames that were left out because they were shown already."""
    repaired_joins: int = 0
    """Places where the file's clock jumps and the timeline goes on."""

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def has_audio(self) -> bool:
        return self.audio_start_s is not None


OpenedBy = Literal["start", "picture", "face_jump", "transnet", "join", "frame_size"]
"""What shows that a shot begins, see `Scene.opened_by`."""

WindowOutcome = Literal["candidates", "no_audio", "no_speech", "no_face", "hdr"]
"""What became of a window: candidate clips, or why there are none."""


class Scene(Record):
    """A span of a video without a shot boundary."""

    video_id: str
    """The video."""
    index: int
    """Number of the scene within its window, from 0."""
    start_s: float
    """Start, in the source."""
    end_s: float
    """End, in the source."""
    opened_by: OpenedBy
    """Evidence of the shot boundary at its start: the window's start, the colours of the frame, a jump of the
    face, TransNet V2, a join of the file's clock or a gap, or another frame size."""


class Track(Record):
    """One face through one scene, as the sparse pass saw it."""

    video_id: str
    """The video."""
    scene: int
    """Number of the scene."""
    track: int
    """Number of the track within its window."""
    start_s: float
    """Start, in the source."""
    end_s: float
    """End, in the source."""
    num_samples: int
    """Sampled frames in which the face was detected."""
    face_px: float
    """Median height of the face box, in source pixels."""
    face_confidence: float
    """Mean detector confidence."""
    detector: str
    """Name of the face detector."""


class Outcome(Record):
    """What became of one window of a video: whether it holds candidate clips, and if not, why."""

    video_id: str
    """The video."""
    start_s: float
    """Start of the window, in the source."""
    end_s: float
    """End of the window, in the source."""
    outcome: WindowOutcome
    """Whether there are candidates; otherwise what is missing: audio, speech or a face. Videos of high
    dynamic range are not measured."""
    speech_s: float
    """Speech in the window."""
    face_s: float
    """Time in which at least one face was tracked."""


def clip_id(video_id: str, start_s: float, end_s: float, track: int) -> str:
    """Key of a clip and of its sample: no dots, sorts by time within a video."""
    start_ms, end_ms = units.milliseconds(start_s), units.milliseconds(end_s)
    return f"{video_id}_{start_ms:08d}_{end_ms:08d}_t{track}"


class Rectangle(NamedTuple):
    """A part of a frame, by its upper left corner and its size."""

    left_px: float
    top_px: float
    width_px: float
    height_px: float


Trim = tuple[int, int]
"""Frames that are left out at the beginning of a clip, and at its end."""


class Clip(Record):
    """A span of a track: the unit of everything after.

    Frame k shows the source at `start_s + k / fps`. Landmarks, contours and joints are in pixels of
    `width_px` x `height_px`. Where there is a crop, pixel x of the source is pixel
    `(x - crop_left_px) * width_px / crop_width_px` of the clip.
    """

    clip_id: str
    """Key of the clip and of its sample: `<video id>_<start ms>_<end ms>_t<track>`, of the span that was
    measured."""
    video_id: str
    """Key of the video: the first 12 hex digits of its sha256."""
    uri: str
    """Path or URI of the input."""
    scene: int
    """Number of the scene within its window of the video."""
    track: int
    """Number of the face track within its window of the video."""
    start_s: float
    """Start of the clip, in the source."""
    end_s: float
    """End of the clip, in the source."""
    fps: float
    """Frame rate of the clip as it is written."""
    num_frames: int
    """Frames of the clip."""
    width_px: int
    """Width of the clip as it is written."""
    height_px: int
    """Height of the clip as it is written."""
    crop_left_px: float | None = None
    """Left edge of what the clip shows of the source, in upright source pixels; None where it shows the whole
    frame."""
    crop_top_px: float | None = None
    """Top edge of it; None likewise."""
    crop_width_px: float | None = None
    """Width of it; None likewise."""
    crop_height_px: float | None = None
    """Height of it; None likewise."""

    @model_validator(mode="after")
    def _expect_a_whole_crop(self) -> Self:
        edges = (self.crop_left_px, self.crop_top_px, self.crop_width_px, self.crop_height_px)
        if any(edge is None for edge in edges) and any(edge is not None for edge in edges):
            raise ValueError(f"a crop has four numbers, or none; found {edges}")
        return self

    @property
    def crop(self) -> Rectangle | None:
        """What the clip shows of the source, in upright source pixels; None: the whole frame."""
        left_px, top_px = self.crop_left_px, self.crop_top_px
        width_px, height_px = self.crop_width_px, self.crop_height_px
        if left_px is None or top_px is None or width_px is None or height_px is None:
            return None
        return Rectangle(left_px, top_px, width_px, height_px)

    @property
    def duration_s(self) -> float:
        return units.seconds_from_frames(self.num_frames, self.fps)

    def trim_of(self, start_s: float, num_frames: int) -> Trim:
        """Frames of this clip before and after a span of it.

        Args:
            start_s: start of the span, in the source.
            num_frames: its frames.
        """
        first = round((start_s - self.start_s) * self.fps)
        return first, self.num_frames - first - num_frames

    def trimmed(self, trim: Trim) -> Clip:
        """The clip without some frames at its beginning and at its end. Its id stays that of the whole."""
        first, last = trim
        start_s, end_s = (units.seconds_from_frames(frames, self.fps) for frames in (first, -last))
        return self.model_copy(
            update={
                "start_s": self.start_s + start_s,
                "end_s": self.end_s + end_s,
                "num_frames": self.num_frames - first - last,
            }
        )


class Face(Record):
    """What track and dense landmarks say of the face. None where the clip was not traced."""

    source_fps: float
    """Average frame rate of the source."""
    face_px: float
    """Median height of the detected face box, in source pixels."""
    face_confidence: float
    """Mean detector confidence over the clip's sampled frames."""
    face_confidence_min: float
    """Least detector confidence over the clip's sampled frames."""
    faces_max: int
    """Most faces visible at once in the sampled frames of the clip, this one included. A face counts where at
    least a tenth of its box lies in the clip."""
    face_clip_px: float | None = None
    """Median height of the detected face box, in pixels of the clip as it is written. In parts measured
    before it was kept it follows from `face_px`."""
    faces_frame_max: int | None = None
    """Most faces visible at once in the whole frame of the source, beside the crop too; None in parts
    measured before it was kept."""
    face_seen_fraction: float | None = None
    """Fraction of frames in which landmarks were found."""
    yaw_deg: float | None = None
    """Median yaw of the head, positive to the viewer's right."""
    pitch_deg: float | None = None
    """Median pitch of the head, positive upwards."""
    roll_deg: float | None = None
    """Median roll of the head, positive clockwise."""
    yaw_p95_deg: float | None = None
    """95th percentile of the absolute yaw: how far the head turns away."""


class Lips(Record):
    """How much of the lip contour was measured."""

    lip_valid_fraction: float
    """Fraction of frames whose lip contour was measured."""
    lip_interpolated_fraction: float
    """Fraction of frames whose lip contour was interpolated."""
    lip_area_fraction: float
    """Mean fraction of the frame that the lip mask covers where it exists."""
    mouth_covered_fraction: float | None = None
    """Fraction of the frames with landmarks in which a mask, a mosaic, a hand, a microphone or anything else
    covers the mouth; heads turned beyond 45 degrees are not judged. None where `measure.lips.covered` is off,
    without landmarks, and in parts measured before it was kept."""


class Motion(Record):
    """Raw variances of motion."""

    omega_face_raw: float | None
    """Variance of the facial landmarks, head pose and scale removed; None where too little was seen."""
    omega_body_raw: float | None
    """Variance of the body joints, camera motion removed; None where too little was seen."""
    joints_valid_fraction: float
    """Fraction of frames with body joints, measured or interpolated."""
    frozen_fraction: float | None = None
    """Fraction of frames in stretches of 0.4 s and more in which the image of the face does not change;
    None in parts measured before it was kept."""
    mouth_still_fraction: float | None = None
    """Fraction of the speech during which the mouth is still: its opening varies by less than 0.025 of the
    eyes' distance within a second. None without speech, or in parts measured before it was kept."""
    camera_motion_per_s: float | None = None
    """How fast the background moves through the frame, by panning, zooming or shaking, in widths of the frame
    per second. None where the body is not measured, and in parts measured before it was kept."""


class Eyes(Record):
    """Where the person looks, and blinks. Gaze is None where the eyes are never seen open."""

    gaze_yaw_deg: float | None
    """Median yaw of the gaze, of head and eyes together, against the direction to the camera; positive to the
    viewer's right. None likewise."""
    gaze_pitch_deg: float | None
    """Median pitch of the gaze, positive upwards; None likewise."""
    gaze_camera_fraction: float | None
    """Fraction of the frames with open eyes in which the gaze is within 15 degrees of the camera; None
    likewise."""
    num_blinks: int
    """Blinks of both eyes."""
    blinks_per_min: float
    """Blinks in a minute in which the face is seen."""


class Speech(Record):
    """What the voice activity detector and the measured level say of the clip's audio."""

    speech_fraction: float
    """Fraction of the clip in which the voice activity detector finds speech."""
    loudness_dbfs: float
    """RMS level of the clip relative to full scale; -120 is digital silence."""
    clipped_fraction: float
    """Fraction of samples at or beyond 0.999 of full scale."""


class AudioQuality(Record):
    """How good the audio is, as far as 16 kHz show it."""

    snr_db: float | None
    """Power of the speech over that of the noise, -20 to 100: by the pauses, or by the floor of the spectrum
    during speech where that gives more or there are no pauses; None without speech, or with less than 0.2 s
    of pauses and 1 s of speech."""
    bandwidth_hz: float | None
    """Highest frequency within 60 dB of the loudest, 0 to 8000; None in silence."""
    dnsmos_signal: float | None
    """DNSMOS P.835 opinion score of the voice, 1 bad to 5 excellent; None in silence or where
    `measure.sound.dnsmos` is off."""
    dnsmos_background: float | None
    """DNSMOS P.835 opinion score of the background; None likewise."""
    dnsmos_overall: float | None
    """DNSMOS P.835 opinion score of both; None likewise."""
    music_fraction: float | None
    """Fraction of the clip with music, under speech or alone; None where `measure.sound.music` is off."""


class Sync(Record):
    """Whether this face's mouth follows this audio.

    The numbers are None where less than 1.5 s of face was seen, or there is no audio or no motion.
    """

    sync_method: str
    """Name of the estimator, with the version of its weights."""
    sync_offset_frames: int | None
    """Frames by which the audio must be delayed to match the mouth, if they belong together; None where sync
    could not be scored."""
    sync_confidence: float | None
    """Significance of that offset; see docs/sync.md. None likewise."""
    sync_zero_confidence: float | None
    """Significance of offset zero; None likewise."""
    sync_probability: float | None = None
    """Calibrated probability that mouth and audio belong together and are within 120 ms of each other; None
    likewise, and where an earlier version measured."""
    sync_offset_probability: float | None = None
    """The same if the audio were moved by `sync_offset_frames`; None likewise."""
    sync_offset_sd_frames: float | None = None
    """Standard deviation of the offset, if mouth and audio belong together, in frames; None likewise."""
    sync_drift_frames: float | None = None
    """Offset of the clip's second half minus that of its first, in frames; None also in clips shorter than
    6 s and where a half does not tell its offset."""
    sync_worst_probability: float | None = None
    """Least probability, over windows of 3 s with voice, that mouth and audio belong together at the clip's
    own offset; None also in clips of 3 s and less, and without such a window."""


class Speaker(Record):
    """What Light-ASD and SyncNet say of face and audio; None where the network was not enabled or
    could not tell."""

    speaking_fraction: float | None
    """Fraction of the frames with speech in which Light-ASD sees this face speak; lips at rest may
    pass for it while another person speaks. None without speech."""
    sync_c: float | None
    """SyncNet's confidence (Sync-C): median over the offsets of the mean distance, minus its minimum."""
    sync_d: float | None
    """SyncNet's distance (Sync-D), that minimum: low where mouth and audio agree."""
    sync_net_offset_frames: int | None
    """Frames at 25 frames/s by which SyncNet would delay the audio, -15 to 15."""


class Transcript(Record):
    """The numbers of a transcript that thresholds apply to; its words are in `transcripts.parquet`."""

    language: str | None
    """Code of the language, such as `en`; None without a transcript or without speech. A model that
    knows one language finds no other."""
    language_probability: float | None
    """Probability of that language by Whisper; None where it was given or is the only one that the
    model knows."""
    num_words: int
    """Words in the transcript."""
    words_per_s: float | None
    """Words for each second of speech; None without speech."""


class Identity(Record):
    """How consistent the face embedding is; the vector itself is in the clip's arrays."""

    identity_model: str
    """Model of the face embedding."""
    identity_consistency: float
    """Least cosine similarity of a good frame's face embedding to the clip's median embedding."""


class FaceQuality(Record):
    """Image quality of the aligned face crop."""

    face_blur: float
    """Variance of the Laplacian of the 112 px aligned face: low is blurred."""
    face_luma: float
    """Mean luma of the face crop."""
    face_dark_fraction: float
    """Fraction of the face's pixels with a luma of 24 or less, over the clip's face crops."""
    face_bright_fraction: float
    """Fraction of the face's pixels with a luma of 245 or more, over the clip's face crops."""
    face_detail_px: float | None = None
    """Height in pixels at which the face has all the detail that it has in the clip: small where it was
    enlarged or is blurred. None in parts measured before it was kept."""


class FrameQuality(Record):
    """Image quality of the whole frame, from some of the clip's frames."""

    black_bar_fraction: float | None
    """Fraction of the frame under bars, black, of one colour, or filled with the blurred image, that stay
    through the clip. A bar beside a frame that has its colour there is not seen, nor one that comes and
    goes."""
    face_brisque: float | None
    """Median BRISQUE of the face and what is next to it, 0 good to 100 bad and beyond: answers to
    blur, compression and strong noise; a little noise on a soft image lowers it. None where
    `measure.picture.brisque` is off."""
    text_fraction: float | None
    """Mean fraction of the frame under text, burned in or in the scene: lines, and words of four
    letters and more. None where `measure.picture.text` is off."""
    mouth_text_fraction: float | None
    """Fraction of these frames in which text lies over the mouth; None likewise."""
    mouth_hand_fraction: float | None
    """Fraction of the frames, five a second, in which a hand covers a quarter of the lips or more; sees no
    microphone, cup or mask. None where `measure.picture.hands` is off."""
    nsfw_probability: float | None = None
    """Largest probability of nudity or sexual content, by open_nsfw, over one frame of each second. None
    where `measure.picture.nsfw` is off."""


class ClipMeasures(Record):
    """A clip with every measurement made of it; None means not measured.

    `stopped_by` names the gate that ended measuring early, or is "not_traced": the rest is unknown, not bad.
    """

    clip: Clip
    stopped_by: str | None
    face: Face
    speech: Speech | None = None
    sound: AudioQuality | None = None
    lips: Lips | None = None
    motion: Motion | None = None
    sync: Sync | None = None
    speaker: Speaker | None = None
    transcript: Transcript | None = None
    """Joined by clip id from `transcripts.parquet` when clips are selected; never in a part."""
    identity: Identity | None = None
    quality: FaceQuality | None = None
    picture: FrameQuality | None = None
    eyes: Eyes | None = None


class Reason(Record):
    """One rule that a clip breaks, with the measured value and the threshold."""

    code: str
    """Code of the rule; docs/rejections.md lists them."""
    field: str
    """Column of the ledger that the rule looks at."""
    value: float | None
    """Measured value; None where it was not measured or is no number."""
    threshold: float | None
    """Threshold that the value breaks; None where the rule has no number."""
    found: str = ""
    """What was found, where that is a text."""

    def __str__(self) -> str:
        value = self.found or ("not measured" if self.value is None else f"{self.value:.4g}")
        threshold = "" if self.threshold is None else f", threshold {self.threshold:.4g}"
        return f"{self.code} ({self.field} {value}{threshold})"


class Verdict(Record):
    """Whether a clip is accepted, and every reason why not."""

    clip_id: str
    accepted: bool
    reasons: tuple[Reason, ...]


class Failure(Record):
    """An error. It is never a verdict: a decode error is not a low score."""

    stage: str
    """Stage that failed: list, probe, measure, trace, cut, transcribe or caption."""
    key: str
    """What failed: an input, a span of a video, or a clip."""
    video_id: str
    """The video; empty where the input could not be read."""
    uri: str
    """Path or URI of the input."""
    error: str
    """Class of the error."""
    message: str
    """Message of the last error, in one line."""
    kind: FailureKind = "video"
    """What it is the fault of: `video` is the input itself; `storage`, `network`, `memory`, `worker`,
    `cluster` and `deadline` are infrastructure and say nothing about the input."""
    attempts: int = 1
    """How often it was tried."""


class Word(Record):
    """One word of a transcript."""

    word: str
    """The word."""
    start_s: float
    """Start, in the clip."""
    end_s: float
    """End, in the clip."""
    probability: float | None
    """Probability of the word by Whisper, 0 to 1; None where it is not known."""


class Turn(Record):
    """A span in which one voice speaks."""

    speaker: str
    """Label of the voice."""
    start_s: float
    """Start, in the clip."""
    end_s: float
    """End, in the clip."""


class Annotation(Record):
    """What a model wrote of a clip that lies in a shard, joined to it by clip id."""

    clip_id: str
    """The clip."""
    failure: str | None
    """What went wrong, as `<class>: <message>`; such a clip is tried again by the next run."""
    text: str
    """Transcript or caption."""
    model: str
    """Name of the model, or of its folder."""
    model_sha256: str
    """sha256 of its weights; of several files, of their hashes in order."""
    fingerprint: str
    """Changes with the model and with every option that the text depends on."""


class TranscriptRow(Annotation):
    """What is said in one clip: a row of `transcripts.parquet`."""

    transcript: Transcript | None
    """Language and numbers of the transcript, as in the ledger; None where it failed."""
    words: tuple[Word, ...]
    """The words with their times in seconds of the clip."""
    word_times: Literal["aligned", "attention"] | None
    """Whether word times are those of forced alignment or of Whisper's attention, which is coarser;
    None without words."""
    turns: tuple[Turn, ...] | None
    """Who speaks when; None where voices were not distinguished."""
    transcriber: str
    """Program that transcribed."""
    version: str
    """Its version."""


class CaptionRow(Annotation):
    """What a vision-language model says of one clip: a row of `captions.parquet`."""

    prompt: str
    """What the model was asked."""
    num_pictures: int
    """Frames of the clip that the model was shown."""


class LedgerRow(Record):
    """One candidate clip with everything known of it: a row of `ledger.parquet`.

    Exactly one of these holds: it is accepted, it is rejected with reasons, or it failed with `failure`.
    A measurement that was not made is None: unknown, not bad.
    """

    clip_id: str
    video_id: str
    uri: str
    source: str
    licence: str
    consent: str
    training_mining: str | None = None
    """What the file's content credentials (C2PA) say of training and data mining, as `<use>=<answer>`; empty:
    nothing; `remote` or `unreadable`: it has some that were not read; `unread`: nobody looked, though
    `thresholds.respect_reservations` asks for it. None: not looked at."""
    person: str
    """Who is seen, by the name that the list of inputs gives; empty where it gives none."""
    start_s: float
    end_s: float
    duration_s: float
    """Length of the clip."""
    scene: int
    track: int
    fps: float
    num_frames: int
    width_px: int
    height_px: int
    crop_left_px: float | None
    crop_top_px: float | None
    crop_width_px: float | None
    crop_height_px: float | None
    accepted: bool
    """Whether the clip fulfils every threshold."""
    reasons: tuple[str, ...]
    """Codes of all rules that it breaks, in the order of the funnel; docs/rejections.md explains each."""
    reason_details: tuple[str, ...]
    """The same with measured value and threshold, for people."""
    failure: str | None
    """The error, where measuring or cutting went wrong."""
    stopped_by: str | None
    """Code of the gate that ended measuring early; `not_traced` where thresholds rejected the clip before the
    dense pass."""
    duplicate_of: str | None
    """Clip that shows the same face at the same moment and is kept in this one's place; None for
    every clip that is no near duplicate."""
    reviewed: str | None = None
    """Decision of a reviewer, `keep` or `drop`; None without one. A clip that was not measured densely stays
    rejected in spite of `keep`."""
    overruled: tuple[str, ...] = ()
    """Codes of the rules that it breaks, and that the reviewer's `keep` overrules."""
    person_id: str | None
    """Clips with the same one show one person; None without a face embedding. `select` does not change it."""
    voice_person: str | None
    """Clips with the same one have one voice; None without a voice embedding, see `measure.voice`."""
    voice_similarity: float | None
    """Similarity of the voice to the usual one of the face: median over the person's other clips. Low where
    another voice was laid over the picture. None with fewer than three clips of the person."""
    split: str | None
    """`train` or `validation`; None where the clip is not accepted."""
    shard: str | None
    """Name of the shard that holds the clip; None until it is cut."""
    source_fps: float
    face_px: float
    face_clip_px: float
    face_confidence: float
    face_confidence_min: float
    faces_max: int
    faces_frame_max: int | None
    face_seen_fraction: float | None
    yaw_deg: float | None
    pitch_deg: float | None
    roll_deg: float | None
    yaw_p95_deg: float | None
    lip_valid_fraction: float | None
    lip_interpolated_fraction: float | None
    lip_area_fraction: float | None
    mouth_covered_fraction: float | None
    speech_fraction: float | None
    loudness_dbfs: float | None
    clipped_fraction: float | None
    snr_db: float | None
    bandwidth_hz: float | None
    dnsmos_signal: float | None
    dnsmos_background: float | None
    dnsmos_overall: float | None
    music_fraction: float | None
    sync_offset_frames: int | None
    sync_confidence: float | None
    sync_zero_confidence: float | None
    sync_probability: float | None
    sync_offset_probability: float | None
    sync_offset_sd_frames: float | None
    sync_drift_frames: float | None
    sync_worst_probability: float | None
    sync_method: str | None
    audio_shift_s: float | None
    """Seconds by which the audio is moved when the clip is cut (positive: delayed), see
    `thresholds.repair_sync`; None where it stays as it is in the source. Columns about audio describe it
    before it is moved. Where the file has no audio for the whole clip then, `start_s`, `end_s`, `duration_s`
    and `num_frames` are those of the shorter clip that is cut, `clip_id` has the span that was measured, and
    the other columns describe that."""
    speaking_fraction: float | None
    sync_c: float | None
    sync_d: float | None
    sync_net_offset_frames: int | None
    language: str | None
    language_probability: float | None
    num_words: int | None
    words_per_s: float | None
    num_forbidden_words: int | None
    """How often words of `thresholds.forbidden_words` are said; None without a list or without a
    transcript."""
    active_speaker: bool | None
    """Of several faces in view, whether this one speaks; None where it is alone or unclear."""
    omega_face_raw: float | None
    omega_body_raw: float | None
    joints_valid_fraction: float | None
    frozen_fraction: float | None
    mouth_still_fraction: float | None
    camera_motion_per_s: float | None
    omega_face: float | None
    """Motion intensity of the face: rank of `omega_face_raw` among the accepted clips."""
    omega_body: float | None
    """Motion intensity of the body: rank of `omega_body_raw` among the accepted clips."""
    identity_model: str | None
    identity_consistency: float | None
    face_blur: float | None
    face_luma: float | None
    face_dark_fraction: float | None
    face_bright_fraction: float | None
    face_detail_px: float | None
    black_bar_fraction: float | None
    face_brisque: float | None
    text_fraction: float | None
    mouth_text_fraction: float | None
    mouth_hand_fraction: float | None
    nsfw_probability: float | None
    gaze_yaw_deg: float | None
    gaze_pitch_deg: float | None
    gaze_camera_fraction: float | None
    num_blinks: int | None
    blinks_per_min: float | None


def ledger_columns(measures: ClipMeasures) -> dict[str, Any]:
    """Ledger columns of what was measured; None where it was not, and where selection decides."""
    row: dict[str, Any] = dict.fromkeys(LedgerRow.model_fields)
    for _, value in measures:
        if isinstance(value, Record):
            row |= value.model_dump()
    return row | {"duration_s": measures.clip.duration_s, "stopped_by": measures.stopped_by}


ReviewDecision = Literal["keep", "drop", "none"]
"""What a reviewer decides: accept the clip whatever the rules say, reject it, or leave it to the rules."""

ReviewLabel = Literal["good", "bad", "none"]
"""What a reviewer sees in a clip, for judging the rules; it decides nothing."""


class ReviewRow(Record):
    """What a person said of one clip: a row of `review.parquet`."""

    clip_id: str
    """The clip."""
    decision: ReviewDecision = "none"
    """`keep`: accepted whatever the rules say; `drop`: rejected; `none`: the rules decide."""
    label: ReviewLabel = "none"
    """`good` or `bad`, for `talkforge audit`; `none` where nobody has said."""
    reason: str = ""
    """What is bad, by a code of docs/review.md; empty where it is good or nobody has said."""
    note: str = ""
    """Free text of the reviewer."""
    reviewed_at: str = ""
    """Time of the last change, UTC, ISO 8601."""
    tool_version: str = ""
    """Version of Talkforge that wrote the row."""


class AuditRow(Record):
    """One clip that a sample was drawn from: a row of `audit.parquet`."""

    clip_id: str
    """The clip."""
    stratum: str
    """What it was drawn among: `accepted`, or the first rule that it broke then."""
    position: int | None
    """Place in the random order in which drawn clips are shown, from 0; None where it was not drawn."""
    seed: int
    """Seed of the draw."""


class PersonRow(Record):
    """One person of the data set: a row of `people.parquet`. Similarities are cosines, -1 to 1."""

    person_id: str
    """The person, as in the ledger."""
    num_clips: int
    """Candidate clips, accepted or not."""
    num_videos: int
    """Videos that these clips come from."""
    duration_s: float
    """Length of these clips together."""
    face_clip_id: str
    """The clip most like the person's other clips: its face stands for the person."""
    odd_clip_id: str | None
    """The clip least like the person's other clips; None where there is only one clip."""
    odd_similarity: float | None
    """Its mean similarity to the others: low where a stranger may have been mixed in."""
    nearest_person_id: str | None
    """Of those never in view together with this person, the one whose mean embedding is nearest; None
    where there is nobody else."""
    nearest_similarity: float | None
    """Similarity of the two mean embeddings: high where both may be one person."""
    labels: tuple[str, ...] = ()
    """Names that the inputs' lists give to whom these clips show: several where people may be mixed up."""


SourceStatus = Literal["measured", "failed", "duplicate", "no_candidates", "pending"]
"""What became of an input; a pending one waits to be measured."""


class SourceRow(Record):
    """One input and what became of it: a row of `sources.parquet`."""

    uri: str
    """Path or URI of the input."""
    video_id: str | None
    """The video; None where the input could not be read."""
    status: SourceStatus
    """`measured`, `failed`, `duplicate` (same bytes as another input), `no_candidates`, or `pending` while it
    waits to be measured."""
    reason: str
    """Why it failed or gave no candidates (`erased` where its content was erased from the data set), or the
    input that it repeats; empty where it was measured."""
    duration_s: float
    """Length of the video."""
    speech_s: float
    """Speech in the video."""
    face_s: float
    """Time in which at least one face was tracked."""
    num_clips: int
    """Candidate clips."""
    num_bytes: int
    """Size of the file."""
    width_px: int | None
    """Width of the image as it should be shown."""
    height_px: int | None
    """Height of the image as it should be shown."""
    fps: float | None
    """Average frame rate of the stream."""
    audio_track: int | None = None
    """Audio track that was used, from 0."""
    audio_channel: str = ""
    """The channel "mix", or the one of a stereo pair that was used because their mean is silence."""
    interlaced: bool = False
    """Whether its frames were deinterlaced."""
    repaired_outliers: int = 0
    """Frames whose wrong timestamp was replaced."""
    repaired_repeats: int = 0
    """Frames left out because they were shown already."""
    repaired_joins: int = 0
    """Places where the file's clock jumps and ours goes on."""
    gaps: int = 0
    """Spans of more than a second without video."""
    source: str
    """Where the footage comes from, as the user says."""
    licence: str
    """Licence of the footage, as the user says."""
    consent: str
    """Consent of the people shown, as the user says."""
    training_mining: str | None = None
    """What the file's content credentials (C2PA) say of training and data mining, as in `ledger.parquet`."""
    person: str = ""
    """Who is seen, by the name that the list of inputs gives; empty where it gives none."""
    start_s: float | None = None
    """Start of the span of the file that the input names; None: the beginning of the file."""
    end_s: float | None = None
    """End of the span of the file that the input names; None: the end of the file."""
