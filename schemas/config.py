"""Configuration: typed sections, a unit and a source for every threshold.

`measure` sections decide what is recorded of a clip; changing them means measuring again.
`thresholds` and `shards` are applied to what was recorded, as often as the user likes.
`run` says how the work is done: what is measured of a clip does not depend on it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from talkforge.schemas import settings as settings_of
from talkforge.schemas.presets import find_config

log = logging.getLogger(__name__)

TextSource = Literal["none", "transcript", "caption"]

Device = Literal["cpu", "cuda", "auto"]
"""What runs the heavy networks of measuring."""


class Section(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OptionalSection(Section):
    """A section that enables models without which a run could go on."""

    optional: bool = Field(
        False,
        description="Where weights that this section needs are not available: true goes on without what they measure, and dataset.json and the report say so; false ends the run before any video is read, with the list of what to fetch.",
    )


class ClipConfig(Section):
    """What a clip is."""

    fps: float = Field(
        25.0,
        ge=8,
        le=60,
        description="Rate of every clip, frames/s. 23 suits the published FantasyTalking weights.",
    )
    max_s: float = Field(20.0, gt=0, description="Longer spans of a track are split, s.")
    min_s: float = Field(2.0, gt=0, description="Shorter spans are candidates, but not measured densely, s.")
    longest_edge_px: int = Field(
        1024, ge=64, description="Clips are scaled down to this longest edge, never up, px."
    )
    crop: Literal["auto", "none", "person", "face"] = Field(
        "auto",
        description="What a clip shows of its frame. none: all of it; person: down to the waist; face: the head; auto: the person where the frame is larger than longest_edge_px and would be scaled down, else all of it. One rectangle for the whole clip, cut before it is scaled, so that a small person in a large frame keeps the pixels of the source; frames without much beside the person stay whole (docs/dataset.md).",
    )
    crop_margin: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Factor on the room that a crop keeps around the face. At 1 this is, in heights of the face: person 0.8 above, 1.5 to each side, 3 below; face 0.6 above and to each side, 0.5 below.",
    )
    crop_aspect: float | None = Field(
        None,
        ge=0.25,
        le=4,
        description="Width over height of a crop, where the frame has room, such as 0.75 for the trainer's 512 x 384; none: what the person needs.",
    )


class ScanConfig(Section):
    """Scenes and faces, sparsely, on small frames."""

    longest_edge_px: int = Field(
        480,
        ge=128,
        description="Longest edge of the frames that the detector sees, px. Where clips are cropped, at least a quarter of that of the video.",
    )
    sample_s: float = Field(0.5, gt=0, description="Time between two frames in which faces are detected, s.")
    detector: Literal["centerface", "scrfd"] = Field(
        "centerface", description="Face detector: CenterFace, or InsightFace's SCRFD where its weights are."
    )
    min_score: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Detections below this are not faces, 0..1. CenterFace gives a cartoon rabbit 0.5.",
    )
    scene_detector: Literal["adaptive", "content", "transnet", "none"] = Field(
        "adaptive",
        description="PySceneDetect's detector of cuts in the frames' colours; jumps of faces count as well. 'transnet': adaptive, and TransNet V2 for dissolves and fades, 0.7 CPU seconds for each second of footage (docs/scenes.md).",
    )
    scene_threshold: float | None = Field(
        None,
        description="Threshold of the scene detector in its own unit; none: the detector's default in curation/shots/jumps.py.",
    )


class LipsConfig(Section):
    """The lip-tracing mask."""

    dilation: float = Field(
        0.08, ge=0, le=1, description="Growth of the outer-lip contour, fraction of the mouth's width."
    )
    max_gap_frames: int = Field(
        4, ge=0, description="Longest run of missing frames that is interpolated, frames."
    )
    covered: bool = Field(
        True,
        description="Look in every frame whether the mouth is covered, and take such lips as missing; 0.01 CPU seconds for each second of a clip.",
    )
    smoothing_frames: int = Field(
        5, ge=1, description="Window of the zero-lag smoothing filter, frames (odd; 1: none)."
    )


class MotionConfig(OptionalSection):
    """Motion intensity."""

    body: Literal["mediapipe", "dwpose", "none"] = Field(
        "mediapipe",
        description="What finds the body's joints (omega_body): MediaPipe Pose, 0.12 CPU seconds for each second of a clip; DWPose as in the paper, about 1.1, whose weights are for research only and have to be fetched; or nothing.",
    )
    pose_stride_frames: int = Field(
        5, ge=1, description="Joints are measured every so many frames and interpolated between, frames."
    )


class SpeechConfig(Section):
    """Voice activity and speech embedding."""

    singing: bool = Field(
        False,
        description="Take singing for speech, found by FireRedVAD; 0.005 CPU seconds for each second of footage. Singing over instruments needs thresholds.max_music_fraction=null as well.",
    )
    embedding: str = Field(
        "logmel-80",
        description="'logmel-80', or the folder or hub name of a transformers speech encoder with safetensors weights: 'facebook/wav2vec2-base-960h', HuBERT, WavLM, Whisper and others of 16 kHz and 50 Hz.",
    )
    device: str = Field("auto", description="'auto', 'cpu' or a torch device for the embedding.")
    batch_clips: int = Field(
        1,
        ge=1,
        description="Most inputs of one length that the encoder takes in a call. Above 1 the last bits of a clip's embedding may depend on the clips beside it: worth it on a GPU only.",
    )


class AudioQualityConfig(OptionalSection):
    """How good the audio is. Signal-to-noise ratio and bandwidth are always measured: they cost nothing."""

    dnsmos: bool = Field(
        False,
        description="Estimate the opinion scores of DNSMOS P.835; 0.04 to 0.14 CPU seconds for each second of a clip.",
    )
    music: bool = Field(
        True,
        description="Measure the fraction of a clip with music; 0.005 CPU seconds for each second of a clip.",
    )


class SpeakerConfig(OptionalSection):
    """Networks that compare a face with the audio. The weights of both may not be used commercially."""

    active_speaker: bool = Field(
        False,
        description="Light-ASD: whether the face is seen to speak; 0.37 CPU seconds for each second of a clip.",
    )
    syncnet: bool = Field(
        False, description="SyncNet: Sync-C and Sync-D; 1.57 CPU seconds for each second of a clip."
    )


class VoiceConfig(OptionalSection):
    """Voice embedding."""

    embedding: bool = Field(
        False,
        description="Voice embedding by Resemblyzer, which needs the extra `torch`: who speaks, and faces with another voice than their usual one; 0.005 CPU seconds for each second of a clip.",
    )


class FrameQualityConfig(OptionalSection):
    """How good the frames are. Blur, exposure and bars are always measured: they cost next to nothing."""

    brisque: bool = Field(
        False,
        description="Judge the face by BRISQUE once a second; 0.002 to 0.011 CPU seconds for each second of a clip.",
    )
    text: bool = Field(
        False,
        description="Look for text, above all over the mouth, once a second with PP-OCRv4's detector; 0.01 to 0.07 CPU seconds for each second of a clip.",
    )
    hands: bool = Field(
        False,
        description="Look for hands over the mouth five times a second with MediaPipe's hand landmarker; 0.06 to 0.08 CPU seconds for each second of a clip.",
    )
    nsfw: bool = Field(
        False,
        description="Look for nudity and sexual content once a second with Yahoo's open_nsfw; 0.03 CPU seconds for each second of a clip.",
    )


class IdentityConfig(OptionalSection):
    """Face embedding."""

    model: str = Field(
        "auto",
        description="'w600k_r50', 'mobilefacenet', 'dlib' (the extra `dlib`), 'none', or 'auto': the first of them whose weights are present, if any; without identity, splits go by source video.",
    )


class GateConfig(Section):
    """Below these a clip is not measured any further: cheaper than the thresholds, and looser."""

    min_speech_fraction: float = Field(0.1, ge=0, le=1, description="Fraction of the clip with speech.")
    min_face_px: float = Field(
        48.0, ge=0, description="Median height of the face box in the clip as it is written, px."
    )
    skip_video_below_speech_fraction: float = Field(
        0.0, ge=0, le=1, description="A video with less speech is not even scanned for faces; 0: all are."
    )


class MeasureConfig(Section):
    """What is recorded of a clip, and on which device."""

    clip: ClipConfig = ClipConfig()
    scan: ScanConfig = ScanConfig()
    gates: GateConfig = GateConfig()
    lips: LipsConfig = LipsConfig()
    motion: MotionConfig = MotionConfig()
    speech: SpeechConfig = SpeechConfig()
    sound: AudioQualityConfig = AudioQualityConfig()
    speaker: SpeakerConfig = SpeakerConfig()
    identity: IdentityConfig = IdentityConfig()
    voice: VoiceConfig = VoiceConfig()
    picture: FrameQualityConfig = FrameQualityConfig()
    device: Device = Field(
        "cpu",
        description="What runs face detection, DWPose, face embedding, TransNet V2, Light-ASD and SyncNet: cpu; cuda, an NVIDIA GPU, which needs onnxruntime-gpu and, for the last three, torch with CUDA; auto: cuda where there is one. Results differ in their last digits between devices, so cpu alone gives the same bytes everywhere (docs/performance.md).",
    )


FACE_CONFIDENCE: dict[str, tuple[float, str]] = {
    "centerface": (
        0.7,
        "ours: frontal speakers have means of 0.84 to 0.93, a face that fills the frame 0.7, no face above 0.67",
    ),
    "scrfd": (0.9, "FantasyTalking data section: InsightFace confidence 0.9"),
}
"""Least mean confidence that suits each detector, and its source: detectors score on scales of their own."""


def _rule(default: float | tuple[str, ...] | None, unit: str, source: str, description: str) -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit, "source": source})


class Thresholds(Section):
    """What a clip must fulfil. `null` switches a rule off."""

    min_duration_s: float | None = _rule(
        3.0, "s", "practice: 2-20 s (LatentSync 5-10, TalkVid > 5)", "shortest clip"
    )
    max_duration_s: float | None = _rule(20.0, "s", "practice: 2-20 s", "longest clip")
    min_source_fps: float | None = _rule(
        24.9,
        "frames/s",
        "practice: 25 fps; 24.9 admits rounding of the container's clock",
        "least frame rate of the source",
    )
    min_face_px: float | None = _rule(
        128.0,
        "px",
        "ours: about a third of Wan's 480 px short edge",
        "least median height of the face box in the clip as it is written",
    )
    min_face_confidence: float | None = Field(
        FACE_CONFIDENCE["centerface"][0],
        description="least mean detector confidence; auto: what suits scan.detector, 0.7 for centerface, 0.9 for scrfd",
        json_schema_extra={
            "unit": "0..1",
            "source": "; ".join(f"{name}: {source}" for name, (_, source) in FACE_CONFIDENCE.items()),
            "default": "auto",
        },
    )
    max_faces: int | None = _rule(
        1, "faces", "TalkVid, Hallo: exactly one face", "most faces visible at once"
    )
    min_lip_valid_fraction: float | None = _rule(
        0.9,
        "fraction of frames",
        "ours: stage 2 learns from the mask",
        "least fraction of frames with a measured lip contour",
    )
    max_mouth_covered_fraction: float | None = _rule(
        0.1,
        "fraction of frames",
        "ours: lips under a cover are guesses; a tenth leaves room for a gesture before the mouth and for false alarms (docs/judgement.md)",
        "largest fraction of frames in which the mouth is covered",
    )
    max_frozen_fraction: float | None = _rule(
        0.1,
        "fraction of frames",
        "ours: speakers have 0, a stream that stalled for a second in a clip of 8 s has 0.12",
        "largest fraction of frames in which the face is frozen",
    )
    max_mouth_still_fraction: float | None = _rule(
        0.5,
        "fraction of the speech",
        "ours: a photo that is zoomed has 1, a mouth behind a surgical mask 0.7, speakers 0 to 0.3 (docs/judgement.md)",
        "largest fraction of the speech during which the mouth is still",
    )
    max_yaw_p95_deg: float | None = _rule(
        60.0,
        "degrees",
        "ours: beyond this half of the mouth is hidden",
        "largest 95th percentile of the magnitude of yaw",
    )
    min_speech_fraction: float | None = _rule(
        0.3,
        "fraction",
        "ours: a sentence of GRID with its pauses has 0.40 to 0.60",
        "least fraction of the clip with speech",
    )
    max_clipped_fraction: float | None = _rule(
        0.01, "fraction", "ours", "largest fraction of clipped samples"
    )
    max_abs_sync_offset_frames: float | None = _rule(
        3.0,
        "frames",
        "LatentSync: 6; ours: 3 (120 ms at 25 fps)",
        "largest absolute audio offset, where the audio is likely to belong to the mouth",
    )
    min_sync_probability: float | None = _rule(
        0.2,
        "0..1",
        "ours: of strangers' pieces of 3 s 89 % are kept, and 1.1 % of those with another's voice; of 6 s 98 % and none (docs/sync.md)",
        "least probability that mouth and audio belong together, within 120 ms, where scored",
    )
    min_sync_worst_probability: float | None = _rule(
        0.02,
        "0..1",
        "ours: docs/sync.md",
        "least probability that mouth and audio belong together in any 3 s with voice, at the clip's own offset, where scored: two people who take turns",
    )
    min_sync_confidence: float | None = _rule(
        None,
        "standard deviations",
        "off: min_sync_probability judges the same evidence, calibrated",
        "least confidence of the sync peak, where scored",
    )
    min_speaking_fraction: float | None = _rule(
        None,
        "fraction",
        "off: needs Light-ASD, and too little footage was seen to set one",
        "least fraction of the speech in which the face is seen to speak, where measured",
    )
    min_sync_c: float | None = _rule(
        None,
        "SyncNet's confidence",
        "off: needs SyncNet; LatentSync requires 3, of the SyncNet that it evaluates with",
        "least Sync-C, where measured",
    )
    min_words_per_s: float | None = _rule(
        None,
        "words per second of speech",
        "off: depends on the language; three clips of English at ease had 2.7 to 3.5",
        "slowest speech, where transcribed",
    )
    max_words_per_s: float | None = _rule(
        None,
        "words per second of speech",
        "off: likewise; what Whisper invents is often too fast to be said",
        "fastest speech, where transcribed",
    )
    languages: tuple[str, ...] = _rule(
        (),
        "language codes",
        "off: whoever trains on one language says which",
        "languages to keep, such as [en, de], where transcribed; empty: all",
    )
    forbidden_words: tuple[str, ...] = _rule(
        (),
        "words",
        "off: no list is shipped",
        "words or phrases that may not be said (whole words, in any case), where transcribed; a list, or the name of a UTF-8 file with one a line",
    )
    require_consent: bool = Field(
        False,
        description="Reject clips whose input has no consent in its list: an empty one, or one that says no, such as `no`, `unknown` or `withdrawn`.",
    )
    licences: tuple[str, ...] = _rule(
        (),
        "licences",
        "off: whoever trains knows which licences allow it",
        "licences of the footage to keep, as lists of inputs give them, in any case, such as [CC0, CC-BY-*] (with * and ?); a clip without one is then rejected; empty: all",
    )
    respect_reservations: bool = Field(
        False,
        description="Reject clips of files whose content credentials (C2PA) do not allow data mining or the training of generative models, or cannot be read. Needs the extra `c2pa` while curating (docs/privacy.md).",
    )
    adapt_sync: bool = Field(
        False,
        description="Fit the sync networks further on the data set's own footage (docs/sync.md). Needs the extra `torch`, 2 minutes of ten people that are in sync, and a minute or two of one core whenever footage was added; the fitted weights stay in the data set.",
    )
    repair_sync: bool = Field(
        False,
        description="Move the audio of a clip that is out of sync by its measured offset when it is cut, where that offset is sure (docs/sync.md), instead of rejecting the clip. Frames for which the file has no audio then are left out. Off by default: the clips are then no longer what the source holds, and what else is measured of the audio is of the span before it was moved.",
    )
    require_sync_score: bool = Field(False, description="Reject clips whose sync could not be scored.")
    require_speaker: bool = Field(
        True,
        description="Reject a face while another face in view is the one that speaks, and a crop beside which there are others unless sync or Light-ASD shows that this one speaks.",
    )
    near_duplicates: bool = Field(
        True,
        description="Reject a clip that shows the same moment as a better one (docs/duplicates.md): a copy counts twice in training, and may lie on both sides of the split.",
    )
    duplicate_overlap: float = _rule(
        0.5,
        "fraction of the clip",
        "ours: below it, more is new than is repeated",
        "of a duplicate, at least this much is in the better clip as well",
    )
    duplicate_landmarks: float = _rule(
        0.03,
        "fraction of the landmarks in the overlap",
        "ours: copies of real clips have at least 0.06, others at most two landmarks",
        "least agreement of the audio of duplicates",
    )
    duplicate_picture_bits: float = _rule(
        20.0,
        "of 64 bits",
        "ours: the same moment has up to 9, or 18 in a fast pan; half of other clips more than 31",
        "largest mean distance of the frames of duplicates",
    )
    min_face_blur: float | None = _rule(
        None,
        "grey levels squared",
        "off: depends on the codec",
        "least variance of the Laplacian of the face",
    )
    min_face_detail_px: float | None = _rule(
        72.0,
        "px",
        "ours: faces enlarged from 64 px have up to 70, of speakers filmed at 110 px and more nine in ten have more than 74 (docs/judgement.md)",
        "least height in pixels at which the face has all the detail that it shows",
    )
    max_face_dark_fraction: float | None = _rule(
        None,
        "fraction",
        "off: dark skin or a beard in low light is not distinguished from an underexposed face; lit speakers have 0 to 0.05, a listener in a dim hall 0.33",
        "largest fraction of the face's pixels with a luma of 24 or less",
    )
    max_face_bright_fraction: float | None = _rule(
        None,
        "fraction",
        "off: no real clip seen has more than 0.01, so none was there to set one by",
        "largest fraction of the face's pixels with a luma of 245 or more",
    )
    max_black_bar_fraction: float | None = _rule(
        0.05,
        "fraction",
        "ours: bars are learnt with the frame; a sliver that a codec or a scanner leaves is below 0.02",
        "largest fraction of the frame under bars: black, of one colour, or blurred",
    )
    max_face_brisque: float | None = _rule(
        None,
        "about 0..100",
        "off: needs measure.picture.brisque, and depends on codec and size of the face; real clips have -4 to 56",
        "largest BRISQUE of the face, where it was computed",
    )
    max_text_fraction: float | None = _rule(
        None,
        "fraction",
        "off: needs measure.picture.text, and a sign in the scene is not distinguished from a subtitle, of which one line covers about 0.03",
        "largest mean fraction of the frame under text, where it was looked for",
    )
    max_mouth_text_fraction: float | None = _rule(
        0.1,
        "fraction of frames",
        "ours: text over the mouth is learnt as mouth; a tenth leaves room for a false detection",
        "largest fraction of frames with text over the mouth, where it was looked for",
    )
    max_mouth_hand_fraction: float | None = _rule(
        0.1,
        "fraction of frames",
        "ours: lips under a hand are guesses; a tenth leaves room for a scratched nose",
        "largest fraction of frames with a hand over the mouth, where it was looked for",
    )
    min_voice_similarity: float | None = _rule(
        None,
        "cosine",
        "off: needs measure.voice.embedding, and one voice in other recordings was not measured; 0.65 lost 0 of 78 clips of 16 people in one recording each, and found 86 % of other voices (docs/identity.md)",
        "least similarity to the usual voice of the face, where it is known",
    )
    max_nsfw_probability: float | None = _rule(
        None,
        "0..1",
        "off: needs measure.picture.nsfw; its authors leave the threshold to the use, and call 0.8 and more very likely",
        "largest probability of sexual content in a frame, where it was looked for",
    )
    min_snr_db: float | None = _rule(
        3.0,
        "dB",
        "ours: of 60 real speakers the noisiest has 4.9, and speech is measured within 2 dB there (docs/judgement.md)",
        "least power of the speech over that of the noise",
    )
    min_dnsmos_overall: float | None = _rule(
        None,
        "about 1..5",
        "off: needs measure.sound.dnsmos, and no paper on talking heads states a figure",
        "least DNSMOS P.835 overall, where it was estimated",
    )
    max_music_fraction: float | None = _rule(
        0.5,
        "fraction",
        "ours: of real speakers 49 of 54 have less than 0.02 and one in a loud restaurant 0.26, rap over a band has 0.20, speech 10 dB above music 0.84 and more",
        "largest fraction of the clip with music, where it was measured",
    )

    @field_validator("forbidden_words", mode="before")
    @classmethod
    def _read_words(cls, given: Any) -> Any:
        """The words themselves go into `dataset.json`, so that the file may change or vanish."""
        if not isinstance(given, str):
            return given
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"expected words, or a UTF-8 file with one a line ({error})") from None
        return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


class ShardConfig(Section):
    """How accepted clips are cut and packed."""

    max_samples: int = Field(1000, ge=1, description="Most samples in one shard.")
    target_mb: float = Field(512.0, gt=0, description="Size aimed at, megabytes; estimated before encoding.")
    validation_fraction: float = Field(
        0.02, ge=0, lt=1, description="Fraction of people (or source videos) held out."
    )
    same_person: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Cosine similarity from which two clips show one person, on average over a person's clips; none: the embedder's own, 0.5, and 0.94 for dlib (docs/identity.md).",
    )
    crf: int = Field(18, ge=0, le=51, description="x264 constant rate factor; 18 is visually lossless.")
    preset: str = Field("veryfast", description="x264 preset.")
    text: TextSource = Field(
        "none",
        description="What the txt member holds, where there is one: see `talkforge transcribe`, `caption`.",
    )
    seed: str = Field("talkforge", description="Salt of the split and of the order of samples.")


class ExecutionConfig(Section):
    """How the work is done. What is measured of a clip does not depend on it."""

    part_s: float = Field(
        600.0,
        gt=0,
        description="Most footage in one part, and longest window of a video, s. Face tracks end where a window does, so of longer videos the clips depend on it.",
    )
    workers: int = Field(0, ge=0, description="Parts in flight; 0: one for each core.")
    gpu_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Fraction of a GPU that an embedding task takes, and a measuring task where measure.device is not cpu, where the cluster has any.",
    )
    trace: Literal["needed", "all"] = Field(
        "needed",
        description="Clips that the dense pass traces. needed: those that the thresholds in force may accept, by what the passes before it found, and faces in view beside them; all: every clip that passes the gates, for statistics of rejected footage. A later `curate` traces what was left out and is needed then.",
    )
    deadline_factor: float = Field(
        60.0, gt=0, description="A part may take this many seconds for each second of its footage..."
    )
    deadline_min_s: float = Field(300.0, gt=0, description="... and at least this long, s.")
    max_attempts: int = Field(
        3, ge=1, description="Runs that try what infrastructure failed (storage, network, memory, workers)."
    )
    max_failed_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="A run stops when more than this fraction of what it tried, and ten at least, failed for one "
        "reason of infrastructure; 1: never.",
    )
    keep_snapshots: int = Field(
        2,
        ge=1,
        description="Snapshots of the shards that are kept, the current one among them; those with a tag are "
        "kept as well. Shards that several snapshots share are stored once.",
    )
    plain_shards: bool = Field(
        True,
        description="Keep the current snapshot's shards under plain names in `shards/`: links on a local disk, "
        "second copies in an object store.",
    )

    protocols: tuple[str, ...] = Field(
        ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "memory"),
        description="Protocols that URIs of inputs may have. Lists may come from elsewhere, and 'http', 'https', 'ftp' or 'sftp' reach into the network of the machine: add what you trust your lists with.",
    )
    max_input_gb: float = Field(
        200.0, gt=0, description="A remote input that is larger is not fetched and fails, GB (10^9 bytes)."
    )
    fetch_timeout_s: float = Field(
        300.0, gt=0, description="Fetching a remote input fails when no data come for so long, s."
    )


class Config(Section):
    """The whole configuration of `talkforge curate`."""

    measure: MeasureConfig = MeasureConfig()
    thresholds: Thresholds = Thresholds()
    shards: ShardConfig = ShardConfig()
    run: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="before")
    @classmethod
    def _confidence_of_the_detector(cls, given: Any) -> Any:
        """`thresholds.min_face_confidence`, where it is `auto` or not given, follows `scan.detector`."""
        if not isinstance(given, dict):
            return given
        thresholds = given.get("thresholds", {})
        if isinstance(thresholds, Thresholds):
            thresholds = thresholds.model_dump(exclude_unset=True)
        if not isinstance(thresholds, dict) or thresholds.get("min_face_confidence", "auto") != "auto":
            return given
        measure = given.get("measure", {})
        scan = measure.get("scan", {}) if isinstance(measure, dict) else getattr(measure, "scan", {})
        detector = scan.get("detector") if isinstance(scan, dict) else getattr(scan, "detector", None)
        least, _ = FACE_CONFIDENCE.get(str(detector), FACE_CONFIDENCE["centerface"])
        return given | {"thresholds": thresholds | {"min_face_confidence": least}}


GATES: tuple[tuple[str, str, str], ...] = (
    ("min_duration_s", "clip.min_s", "shorter clips"),
    ("min_speech_fraction", "gates.min_speech_fraction", "clips with less speech"),
    ("min_face_px", "gates.min_face_px", "clips with a smaller face"),
    ("min_face_confidence", "scan.min_score", "detections below it"),
    ("max_duration_s", "clip.max_s", "longer clips"),
)
"""Thresholds for what measuring stops, drops or splits by itself: threshold, setting of `measure`, what it
leaves out. The first three are the gates of `stopped_by`, whose clips are rejected even where the rule is off."""


def idle_thresholds(config: Config) -> list[str]:
    """One line for each threshold that is looser than what measuring lets through: it cannot act."""
    lines = []
    for number, (name, key, what) in enumerate(GATES):
        section, _, field = key.partition(".")
        gate = getattr(getattr(config.measure, section), field)
        threshold = getattr(config.thresholds, name)
        if threshold is None:
            looser = number < 3 and gate > 0
        else:
            looser = threshold > gate if name.startswith("max_") else threshold < gate
        if looser:
            found = "null" if threshold is None else f"{threshold:g}"
            lines.append(
                f"thresholds.{name}={found} cannot act: measuring leaves out {what} already "
                f"(measure.{key}={gate:g}, which cannot change once a data set is begun)"
            )
    return lines


def threshold_source(config: Config, name: str) -> str:
    """Where the value of a threshold comes from: that of its default, or that it was set for this data set."""
    value = getattr(config.thresholds, name)
    field = Thresholds.model_fields[name]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default, source = field.default, str(extra.get("source", ""))
    if name == "min_face_confidence":
        default, source = FACE_CONFIDENCE[config.measure.scan.detector]
    return source if value == default else "set for this data set"


def load_config(name: str | Path | None, settings: Iterable[str] = ()) -> Config:
    """Configuration of `talkforge curate` from a YAML file and `section.key=value` settings.

    Thresholds that cannot act are warned of, see `idle_thresholds`.

    Args:
        name: name of a preset, or path of a file; None: the defaults.
        settings: each overrides one value; a leading `measure.` may be left out.

    Raises:
        CommandError: the file cannot be read, or keys or values do not fit; one line.
    """
    file = None if name is None else find_config(name, "curate")
    return _warned(settings_of.read(Config, file, settings, _full_key))


def apply_settings(data: dict[str, Any], settings: Iterable[str]) -> Config:
    """`data` with `section.key=value` settings laid over it, checked as by `load_config`."""
    return _warned(settings_of.overlay(Config, data, settings, full_key=_full_key))


def _full_key(keys: list[str]) -> list[str]:
    return ["measure", *keys] if keys[0] in MeasureConfig.model_fields else keys


def _warned(config: Config) -> Config:
    for line in idle_thresholds(config):
        log.warning("%s", line)
    return config


def config_hash(section: BaseModel) -> str:
    """sha256 of a section's canonical JSON."""
    text = json.dumps(section.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(section: BaseModel) -> dict[str, Any]:
    """`section.key` -> value of every leaf, for naming differences."""

    def walk(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, child in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            yield prefix, value

    return dict(walk("", section.model_dump(mode="json")))


def differences(old: BaseModel, new: BaseModel) -> list[str]:
    """One `key: old -> new` for every leaf that differs."""
    a, b = flatten(old), flatten(new)
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
