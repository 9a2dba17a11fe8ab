"""Records for tests, with every field filled in."""

from __future__ import annotations

from typing import Any

from talkforge.schemas.records import Clip, Video


def video(number: int, seconds: float = 60.0, **changes: Any) -> Video:
    """A plain 64x64 video at 25 frames/s with sound, called `<number>.mp4`; its hash is its number."""
    facts: dict[str, Any] = {
        "video_id": f"{number:012x}",
        "sha256": f"{number:064x}",
        "uri": f"{number}.mp4",
        "num_bytes": 1,
        "licence": "CC0",
        "container": "mp4",
        "video_codec": "h264",
        "pixel_format": "yuv420p",
        "width_px": 64,
        "height_px": 64,
        "coded_width_px": 64,
        "coded_height_px": 64,
        "rotation_deg": 0,
        "sample_aspect_ratio": 1.0,
        "fps": 25.0,
        "fps_nominal": 25.0,
        "start_s": 0.0,
        "end_s": seconds,
        "audio_start_s": 0.0,
    }
    return Video.model_validate(facts | changes)


def clip_of(num_frames: int, width_px: int, height_px: int, start_s: float = 0.0, fps: float = 25.0) -> Clip:
    """A clip of the video `v.mp4`."""
    return Clip(
        clip_id="c",
        video_id="v",
        uri="v.mp4",
        scene=0,
        track=0,
        start_s=start_s,
        end_s=start_s + num_frames / fps,
        fps=fps,
        num_frames=num_frames,
        width_px=width_px,
        height_px=height_px,
    )
