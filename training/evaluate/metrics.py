"""The metrics of an evaluation: what each is called, in what unit, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Better = Literal["high", "low", "zero", "truth"]
"""high, low: the more, the less the better. zero: the nearer to 0. truth: the nearer to the true video."""


@dataclass(frozen=True)
class Metric:
    """One number of a video, of a pair of videos, or of all videos.

    Attributes:
        name: key in tables and JSON.
        label: in words.
        unit: of the number; empty for a plain number.
        better: which way is better.
        of: 'video': measured in generated and true videos alike; 'pair': in a generated video against its
            true one; 'set': of all generated videos against all true ones.
        paper: whether it is one of FantasyTalking's nine.
        meaning: one sentence for the report.
    """

    name: str
    label: str
    unit: str
    better: Better
    of: Literal["video", "pair", "set"]
    meaning: str
    paper: bool = False


PAPER = (
    Metric("fid", "FID", "", "low", "set", "Fréchet distance of Inception features of frames.", True),
    Metric("fvd", "FVD", "", "low", "set", "Fréchet distance of I3D features of 16 frames.", True),
    Metric("sync_c", "Sync-C", "", "high", "video", "SyncNet's confidence.", True),
    Metric("sync_d", "Sync-D", "", "low", "video", "SyncNet's distance.", True),
    Metric("es", "ES", "", "high", "video", "Cosine similarity of ArcFace features between frames.", True),
    Metric("idc", "IDC", "", "high", "video", "Cosine similarity of DINO features of face crops.", True),
    Metric("sd", "SD", "", "high", "video", "Optical flow of the subject by RAFT, split by SAM.", True),
    Metric("bd", "BD", "", "high", "video", "Optical flow of the background by RAFT, split by SAM.", True),
    Metric("aesthetics", "Aesthetics", "", "high", "video", "LAION's aesthetic predictor.", True),
)
"""Source: FantasyTalking, section 4.1 and its table of comparisons."""

FREE = (
    Metric(
        "sync_probability", "Sync probability", "0..1", "high", "video",
        "Probability that mouth and audio belong together within 120 ms (docs/sync.md).",
    ),
    Metric(
        "av_delay_ms", "Audio-visual delay", "ms", "zero", "video",
        "Time by which the audio must be delayed to match the mouth, where the two belong together.",
    ),
    Metric(
        "lip_aperture_r", "Lip aperture, correlation", "-1..1", "high", "pair",
        "Pearson's r of the opening between the lips and that of the true video, frame by frame.",
    ),
    Metric(
        "lip_aperture_ratio", "Lip aperture, amplitude", "", "truth", "pair",
        "Standard deviation of the opening over that of the true video; 1 is equal.",
    ),
    Metric(
        "silence_opening", "Mouth opening in silence", "% of eye distance", "low", "video",
        "Mean opening between the lips where there is no speech, 0.12 s and more from any.",
    ),
    Metric(
        "still_fraction", "Mouth still in speech", "fraction", "low", "video",
        "Fraction of the speech during which the opening hardly changes for a second.",
    ),
    Metric(
        "jitter", "Landmark jitter", "‰ of eye distance", "low", "video",
        "Tremble of forehead, nose and eye corners from frame to frame, motion left out.",
    ),
    Metric(
        "identity_similarity", "Identity similarity", "-1..1", "high", "video",
        "Mean cosine similarity of the face to the one in the first frame of the true video.",
    ),
    Metric(
        "identity_drift", "Identity drift", "", "zero", "video",
        "Similarity in the last three eighths minus that in the first three.",
    ),
    Metric("blinks_per_min", "Blinks", "1/min", "truth", "video", "Blinks in a minute."),
    Metric(
        "head_motion_deg", "Head motion", "degrees", "truth", "video",
        "Standard deviation of yaw, pitch and roll together.",
    ),
    Metric(
        "flow_subject", "Motion of the subject", "% of height/s", "truth", "video",
        "Mean optical flow where a person is seen.",
    ),
    Metric(
        "flow_background", "Motion of the background", "% of height/s", "truth", "video",
        "Mean optical flow elsewhere.",
    ),
    Metric(
        "sharpness", "Sharpness of the face", "", "truth", "video",
        "Variance of the Laplacian of the aligned face, median over eight frames; noise raises it too.",
    ),
    Metric(
        "face_detail_px", "Detail of the face", "px", "truth", "video",
        "Height at which the face would lose no detail (docs/judgement.md).",
    ),
    Metric(
        "frozen_fraction", "Frozen", "fraction", "low", "video",
        "Fraction of the video in stretches in which the face does not change at all.",
    ),
    Metric(
        "face_seen_fraction", "Face seen", "fraction", "high", "video",
        "Fraction of the frames in which the landmarks were found.",
    ),
)  # fmt: skip
"""Metrics whose networks come with packages, or that need none."""

METRICS = {metric.name: metric for metric in (*PAPER, *FREE)}
"""Every metric by its name, those of the paper first."""


def badness(metric: Metric, value: float | None, truth: float | None) -> float | None:
    """How far a value is from the best, in its unit; less is better.

    Args:
        metric: what was measured.
        value: of the generated video.
        truth: of the true video; of the amplitude of the lip aperture it is 1.

    Returns:
        None where a value that is needed is missing.
    """
    if value is None or math.isnan(value):
        return None
    if metric.better == "truth":
        return None if truth is None else abs(value - truth)
    return {"high": -value, "low": value, "zero": abs(value)}[metric.better]
