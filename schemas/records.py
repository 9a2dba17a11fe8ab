"""The records, in the order in which they flow.

    Source -> Video -> Scene -> Track -> Clip -> measurements -> Verdict
    anything that goes wrong -> Failure

A record is immutable and holds no arrays; it is what Parquet and JSON see. Field names of
the measurements are the column names of the ledger. Arrays travel in the frozen dataclasses
of `schemas.arrays`.

Time: before `Clip`, source seconds; from `Clip` on, frames at the data set's constant rate.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from talkforge.schemas import units


class Record(BaseModel):
    """Frozen, and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Input(Record):
    """One input as the user named it, with what the user said of it."""

    uri: str
    source: str = ""
    licence: str = ""
    consent: str = ""


class Video(Record):
    """Probe facts of one file; `video_id` is the first 12 hex digits of its sha256.

    Sizes are those of the picture as it should be shown: after rotation and with square
    pixels. Times are source seconds (0 = the container's start time); `end_s` is the end of the
    last frame as far as the container tells, and may lie beyond what can be decoded.
    """

    video_id: str
    sha256: str
    uri: str
    num_bytes: int
    source: str = ""
    licence: str = ""
    consent: str = ""
    container: str
    video_codec: str
    pixel_format: str
    width_px: int
    height_px: int
    coded_width_px: int
    coded_height_px: int
    rotation_deg: int
    """Clockwise rotation to apply for display: 0, 90, 180 or 270."""
    sample_aspect_ratio: float
    fps: float
    """Average frames per second of the stream."""
    fps_nominal: float
    """Rate the container declares; differs from `fps` where the rate varies."""
    start_s: float
    end_s: float
    audio_codec: str = ""
    audio_hz: int = 0
    audio_channels: int = 0
    audio_start_s: float | None = None
    """None where the file has no audio stream."""

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def has_audio(self) -> bool:
        return self.audio_start_s is not None


class Scene(Record):
    """A span without a cut. `opened_by` says what evidence opened it."""

    video_id: str
    index: int
    start_s: float
    end_s: float
    opened_by: Literal["start", "picture", "face_jump", "transnet"]


class Track(Record):
    """One face through one scene, as seen by the sparse scan."""

    video_id: str
    scene: int
    track: int
    """Number of the track within its video."""
    start_s: float
    end_s: float
    num_samples: int
    """Sampled frames in which the face was detected."""
    face_px: float
    """Median height of the face box, in source pixels."""
    face_confidence: float
    """Mean detector confidence, 0 to 1."""
    detector: str


class Outcome(Record):
    """What became of one window of a video: whether it holds candidates, and if not, why."""

    video_id: str
    start_s: float
    end_s: float
    outcome: Literal["candidates", "no_audio", "no_speech", "no_face"]
    speech_s: float
    """Seconds of speech heard in the window."""
    face_s: float
    """Seconds in which at least one face was tracked."""


def clip_id(video_id: str, start_s: float, end_s: float, track: int) -> str:
    """Key of a clip and of its sample: no dots, sorts by time within a video."""
    start_ms, end_ms = units.milliseconds(start_s), units.milliseconds(end_s)
    return f"{video_id}_{start_ms:08d}_{end_ms:08d}_t{track}"


class Clip(Record):
    """A span of a track: the unit of everything after.

    Frame k shows the source at `start_s + k / fps`. `width_px` and `height_px` are those of the
    clip as it will be written; landmarks, contours and joints are in these pixels.
    """

    clip_id: str
    video_id: str
    uri: str
    scene: int
    track: int
    start_s: float
    end_s: float
    fps: float
    num_frames: int
    width_px: int
    height_px: int

    @property
    def duration_s(self) -> float:
        return units.seconds_from_frames(self.num_frames, self.fps)


class Face(Record):
    """What the track and the dense landmarks say of the face."""

    source_fps: float
    """Average rate of the source video, frames per second."""
    face_px: float
    """Median height of the detected face box, in source pixels."""
    face_confidence: float
    """Mean detector confidence over the clip's sampled frames, 0 to 1."""
    face_confidence_min: float
    faces_max: int
    """Most faces visible at once in the sampled frames of the clip, this one included."""
    face_seen_fraction: float | None = None
    """Share of frames in which landmarks were found; None where not measured densely."""
    yaw_deg: float | None = None
    """Median yaw, positive to the viewer's right; likewise pitch (up) and roll (clockwise)."""
    pitch_deg: float | None = None
    roll_deg: float | None = None
    yaw_p95_deg: float | None = None
    """95th percentile of |yaw|: how far the head turns away."""


class Lips(Record):
    """How well the lip trace is founded."""

    lip_valid_fraction: float
    """Share of frames whose contour was measured (code 2)."""
    lip_interpolated_fraction: float
    """Share of frames whose contour was interpolated (code 1)."""
    lip_area_fraction: float
    """Mean share of the clip's pixels that the mask covers where it exists."""


class Motion(Record):
    """Raw variances of motion; None where there was too little to measure."""

    omega_face_raw: float | None
    """Variance of facial landmarks, head pose and scale removed, in units of squared
    inter-ocular distance."""
    omega_body_raw: float | None
    """Variance of body joints, camera motion removed, in units of squared shoulder width."""
    joints_valid_fraction: float
    """Share of frames with body joints measured or interpolated."""


class Speech(Record):
    """What is heard in the clip's span."""

    speech_fraction: float
    """Share of the clip in which the voice activity detector hears speech, 0 to 1."""
    loudness_dbfs: float
    """RMS level of the clip, dB relative to full scale; -120 for digital silence."""
    clipped_fraction: float
    """Share of samples at or beyond 0.999 of full scale."""


class AudioQuality(Record):
    """How good the sound is, as far as 16 kHz let it be heard; None where it could not be measured."""

    snr_db: float | None
    """Power of the speech over that of the pauses, dB; None without speech, or without pauses to
    hear the noise in."""
    bandwidth_hz: float | None
    """Highest frequency at which there is sound, 0 to 8000; None in silence."""
    dnsmos_signal: float | None
    """DNSMOS P.835, estimated opinion score of the voice, about 1 (bad) to 5 (excellent); likewise of
    the background and of both. None in silence, or where it was not asked for."""
    dnsmos_background: float | None
    dnsmos_overall: float | None
    music_fraction: float | None
    """Share of the clip in which there is music, under speech or alone, 0 to 1; None where it was not
    asked for."""


class Sync(Record):
    """Whether this face's mouth follows this audio."""

    sync_method: str
    """Name of the estimator, with the version of its map."""
    sync_offset_frames: int | None
    """Frames by which the audio must be delayed (positive) to match the mouth; None: unscored."""
    sync_confidence: float | None
    """Significance of the peak; see `curation.sync.ridge` for its meaning. None: unscored."""
    sync_zero_confidence: float | None
    """The same significance at lag zero, used to say who of several people speaks."""


class Speaker(Record):
    """What networks say of face and sound; None where that one was not used or could not tell."""

    speaking_fraction: float | None
    """Share of the frames with speech in which Light-ASD sees this face speak; None without speech."""
    sync_c: float | None
    """SyncNet's confidence: median over the shifts of the mean distance, less its minimum."""
    sync_d: float | None
    """That minimum: low where mouth and sound agree."""
    sync_net_offset_frames: int | None
    """Frames at 25 a second by which SyncNet would delay the audio, -15 to 15."""


class Transcript(Record):
    """What is said in the clip, as far as it decides; the words are in the row of `transcripts.parquet`."""

    language: str | None
    """Code of the language, such as `en`; None without speech."""
    language_probability: float | None
    """None where the language was given, or is the only one that the model knows."""
    num_words: int
    words_per_s: float | None
    """Words per second of speech; None without speech."""


class Identity(Record):
    """Whose face it is, as far as an embedding can tell; the vector is in the clip's arrays."""

    identity_model: str
    identity_consistency: float
    """Least cosine similarity of a good frame's embedding to the clip's median embedding."""


class FaceQuality(Record):
    """The picture of the face."""

    face_blur: float
    """Variance of the Laplacian of the 112 px aligned face in 8-bit grey levels: low is blurred."""
    face_luma: float
    """Mean luma of the face crop, 0 to 255."""
    face_dark_fraction: float
    """Share of the face's pixels with a luma of 24 or less, over the clip's face crops."""
    face_bright_fraction: float
    """Likewise of 245 or more."""


class FrameQuality(Record):
    """The picture beyond the face, from some of its frames; None where it was not asked for, or no frame
    could answer."""

    black_bar_fraction: float | None
    """Share of the picture's area under black bars that stay through the clip."""
    face_brisque: float | None
    """Median BRISQUE of the face and what is next to it: about 0 (good) to 100 (bad), and beyond."""
    text_fraction: float | None
    """Mean share of the picture's area under text, burned in or in the scene."""
    mouth_text_fraction: float | None
    """Share of the frames in which text lies over the mouth."""
    mouth_hand_fraction: float | None
    """Share of the frames in which a hand lies over the mouth; sees hands, and nothing else."""


class ClipMeasures(Record):
    """A clip with every measurement made of it; None means not measured.

    `stopped_by` names the gate that ended measuring early: the rest is unknown, not bad.
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


class Reason(Record):
    """One failed rule, with what was measured and what was asked."""

    code: str
    field: str
    value: float | None
    threshold: float | None

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        threshold = "" if self.threshold is None else f", threshold {self.threshold:.4g}"
        return f"{self.code} ({self.field} {value}{threshold})"


class Verdict(Record):
    """Accepted, or every reason why not."""

    clip_id: str
    accepted: bool
    reasons: tuple[Reason, ...]


class Failure(Record):
    """An error, which is never a verdict: a decode error is not a low score.

    `key` is what failed: a uri, a video id with a span, or a clip id.
    """

    stage: str
    key: str
    video_id: str
    uri: str
    error: str
    message: str


class Word(Record):
    """One word, in seconds of the clip."""

    word: str
    start_s: float
    end_s: float
    probability: float | None


class Turn(Record):
    """A span in which one voice speaks, in seconds of the clip."""

    speaker: str
    start_s: float
    end_s: float


class Annotation(Record):
    """What was said of a clip that lies in a shard, after it was cut; joined by clip id."""

    clip_id: str
    failure: str | None
    """What went wrong, as `<class>: <message>`; such a clip is tried again by the next run."""
    text: str
    model: str
    """Name of the model, or of its folder."""
    model_sha256: str
    fingerprint: str
    """Changes with the model and with every option that the text depends on."""


class TranscriptRow(Annotation):
    """What is said in one clip: a row of `transcripts.parquet`."""

    transcript: Transcript | None
    """None where it failed."""
    words: tuple[Word, ...]
    word_times: Literal["aligned", "attention"] | None
    """Whether word times are those of forced alignment or of the model's attention; None without words."""
    turns: tuple[Turn, ...] | None
    """Who speaks when; None where voices were not told apart."""
    transcriber: str
    version: str


class CaptionRow(Annotation):
    """What a vision-language model says of one clip: a row of `captions.parquet`."""

    prompt: str
    num_pictures: int
    """Pictures of the clip that the model was shown."""


class LedgerRow(Record):
    """One candidate clip with everything known of it: a row of `ledger.parquet`.

    Exactly one of these holds: accepted; rejected, with reasons; failed, with `failure`.
    """

    clip_id: str
    video_id: str
    uri: str
    source: str
    licence: str
    consent: str
    start_s: float
    end_s: float
    duration_s: float
    scene: int
    track: int
    fps: float
    num_frames: int
    width_px: int
    height_px: int
    accepted: bool
    reasons: tuple[str, ...]
    """Codes of the failed rules, in the order of the funnel; see `curation.verdict`."""
    reason_details: tuple[str, ...]
    """The same with measured value and threshold, for people."""
    failure: str | None
    """What went wrong while the clip was measured or cut."""
    stopped_by: str | None
    """Code of the gate that ended measuring early."""
    duplicate_of: str | None
    """Clip that shows the same face at the same moment and is kept in this one's place."""
    person_id: str | None
    split: str | None
    """`train` or `validation`; None where the clip is not accepted."""
    shard: str | None
    """Name of the shard that holds the clip; None until it is cut."""
    source_fps: float
    face_px: float
    face_confidence: float
    face_confidence_min: float
    faces_max: int
    face_seen_fraction: float | None
    yaw_deg: float | None
    pitch_deg: float | None
    roll_deg: float | None
    yaw_p95_deg: float | None
    lip_valid_fraction: float | None
    lip_interpolated_fraction: float | None
    lip_area_fraction: float | None
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
    sync_method: str | None
    speaking_fraction: float | None
    sync_c: float | None
    sync_d: float | None
    sync_net_offset_frames: int | None
    language: str | None
    language_probability: float | None
    num_words: int | None
    words_per_s: float | None
    num_forbidden_words: int | None
    """Of `thresholds.forbidden_words`; None without a list or without a transcript."""
    active_speaker: bool | None
    """Of several faces in view, is this the one that speaks? None: alone, or unclear."""
    omega_face_raw: float | None
    omega_body_raw: float | None
    joints_valid_fraction: float | None
    omega_face: float | None
    omega_body: float | None
    identity_model: str | None
    identity_consistency: float | None
    face_blur: float | None
    face_luma: float | None
    face_dark_fraction: float | None
    face_bright_fraction: float | None
    black_bar_fraction: float | None
    face_brisque: float | None
    text_fraction: float | None
    mouth_text_fraction: float | None
    mouth_hand_fraction: float | None


def ledger_columns(measures: ClipMeasures) -> dict[str, Any]:
    """Ledger columns of what was measured; None where it was not, and where selection decides."""
    row: dict[str, Any] = dict.fromkeys(LedgerRow.model_fields)
    for _, value in measures:
        if isinstance(value, Record):
            row |= value.model_dump()
    return row | {"duration_s": measures.clip.duration_s, "stopped_by": measures.stopped_by}


class PersonRow(Record):
    """One person of the data set: a row of `people.parquet`. Similarities are cosines, -1 to 1."""

    person_id: str
    num_clips: int
    """Candidate clips, accepted or not."""
    num_videos: int
    duration_s: float
    """Of these clips."""
    face_clip_id: str
    """The clip most like the person's other clips: its face stands for the person."""
    odd_clip_id: str | None
    """The clip least like the person's other clips; None where there is only one clip."""
    odd_similarity: float | None
    """Its mean similarity to the others: low where a stranger may have been mixed in."""
    nearest_person_id: str | None
    """Of those never in view together with this one, whose mean embedding is nearest; None: nobody."""
    nearest_similarity: float | None
    """Similarity of the two mean embeddings: high where both may be one person."""


SourceStatus = Literal["measured", "failed", "duplicate", "no_candidates", "pending"]
"""What became of an input; a pending one waits to be measured."""


class SourceRow(Record):
    """One input and what became of it: a row of `sources.parquet`."""

    uri: str
    video_id: str | None
    status: SourceStatus
    reason: str
    """Why it failed or gave no candidates, or the input it repeats; empty where measured."""
    duration_s: float
    speech_s: float
    face_s: float
    num_clips: int
    num_bytes: int
    width_px: int | None
    height_px: int | None
    fps: float | None
    source: str
    licence: str
    consent: str
