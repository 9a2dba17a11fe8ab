"""The local server behind `talkforge studio`.

Addresses, all below a random token:

    /<token>/            the page; also page.js and page.css
    /<token>/about       the model, its controls, and what was handed over
    /<token>/portrait    POST: an image file; GET: the portrait, upright
    /<token>/frame       the portrait as the model gets it; `face`: number of the face that speaks
    /<token>/audio       POST: an audio or video file; GET: what is heard of it, as WAV
    /<token>/make        POST: begins a video
    /<token>/cancel      POST: ends it
    /<token>/state       how far it is, and the videos that are there
    /<token>/video/<n>   a video, whole or by ranges

`talkforge.local_page` says who is answered.
"""

from __future__ import annotations

import functools
import io
import wave
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import flask
import jinja2
import numpy as np
from PIL import Image
from pydantic import ValidationError

from talkforge import local_page
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.errors import first_invalid
from talkforge.schemas.package_files import package_text
from talkforge.schemas.units import AUDIO_HZ
from talkforge.studio.studio import Photo, Settings, Speech, Studio
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.generate.portrait import largest, place

PACKAGE = "talkforge.studio"

MAX_BODY_BYTES = 1 << 30
"""Most bytes of a file that is handed over."""

MAX_SETTINGS_BYTES = 64_000
"""Most bytes of what a video is asked for with."""

PIECE_BYTES = 1 << 20
"""Bytes of a file that are in memory at a time."""

SHOWN_EDGE_PX = 1024
"""Longest edge of the portrait on the page."""


def make_app(studio: Studio, title: str, token: str) -> flask.Flask:
    """The application, to be served or tested.

    Args:
        studio: what it shows.
        title: what the page is called.
        token: what every address begins with.
    """
    get: dict[str, Callable[..., Any]] = {
        "/": functools.partial(_page, title),
        "/about": functools.partial(_about, studio),
        "/portrait": functools.partial(_portrait, studio),
        "/frame": functools.partial(_frame, studio),
        "/audio": functools.partial(_audio, studio),
        "/state": functools.partial(_state, studio),
        "/video/<int:number>": functools.partial(_video, studio),
    }
    post: dict[str, Callable[..., Any]] = {
        "/portrait": lambda: _described(studio.take_photo(_body())),
        "/audio": lambda: _heard(studio, studio.take_speech(_body())),
        "/make": functools.partial(_make, studio),
        "/cancel": functools.partial(_cancel, studio),
    }
    return local_page.make_app(token, PACKAGE, get, post, MAX_BODY_BYTES)


def listen(studio: Studio, title: str, port: int = 0) -> local_page.Server:
    """Begin to listen on 127.0.0.1.

    Args:
        studio: what the page shows.
        title: what it is called.
        port: TCP port; 0 takes a free one.

    Raises:
        CommandError: the port is taken or not allowed.
    """
    return local_page.listen(functools.partial(make_app, studio, title), port)


def controls(pipeline: GenerationPipeline) -> list[dict[str, Any]]:
    """What can be set for this model: name, label, kind, range and value. What has no effect is left out.

    Args:
        pipeline: the model.
    """
    sample, has_text = pipeline.config.sample, pipeline.config.codec.text != "none"

    def slider(name: str, label: str, most: float, step: float, value: float) -> dict[str, Any]:
        return {
            "name": name, "label": label, "kind": "range",
            "min": 0, "max": max(most, value), "step": step, "value": value,
        }  # fmt: skip

    def text(name: str, label: str, value: str) -> dict[str, Any]:
        return {"name": name, "label": label, "kind": "text", "value": value}

    def choice(name: str, label: str, options: list[str], value: str) -> dict[str, Any]:
        return {"name": name, "label": label, "kind": "select", "options": options, "value": value}

    def number(name: str, label: str, least: int, most: int, value: int) -> dict[str, Any]:
        return {
            "name": name, "label": label, "kind": "number",
            "min": least, "max": most, "step": 1, "value": value,
        }  # fmt: skip

    found = []
    if has_text:
        found.append(text("prompt", "Prompt", ""))
    if pipeline.model.motion is not None:
        found.append(slider("omega_face", "Motion of the face", 1, 0.05, 0.5))
        found.append(slider("omega_body", "Motion of the body", 1, 0.05, 0.5))
    found.append(slider("sample.audio_cfg", "Guidance by the audio", 10, 0.1, sample.audio_cfg))
    if has_text:
        found.append(slider("sample.text_cfg", "Guidance by the prompt", 10, 0.1, sample.text_cfg))
    found.append(number("sample.steps", "Steps", 1, 10_000, sample.steps))
    found.append(number("seed", "Seed", 0, 2**31 - 1, 0))
    found.append(choice("sample.solver", "Solver", ["euler", "dpm++2m"], sample.solver))
    if pipeline.config.data.prefix_frames:
        found.append(choice("sample.windows", "Long videos", ["overlap", "continue"], sample.windows))
    if len(pipeline.model.transformer.blocks) > 1:
        found.append(slider("sample.cache", "Step caching (0: off)", 0.5, 0.01, sample.cache))
    if has_text:
        found.append(text("sample.negative_prompt", "Negative prompt", sample.negative_prompt))
    return found


# ------------------------------------------------------------------------------------- answers


def _page(title: str) -> str:
    template = jinja2.Environment(autoescape=True).from_string(package_text(PACKAGE, "page.html.j2"))
    return template.render(title=title)


def _body() -> Iterator[bytes]:
    while piece := flask.request.stream.read(PIECE_BYTES):
        yield piece


def _about(studio: Studio) -> dict[str, Any]:
    config, has_photo, has_speech = studio.pipeline.config, studio.has_photo, studio.has_speech
    return {
        "controls": controls(studio.pipeline),
        "fps": studio.pipeline.info.fps,
        "sizes": [list(size) for size in config.data.sizes],
        "face_branch": config.adapters.face and studio.pipeline.info.identity_dim > 0,
        "portrait": _described(studio.photo) if has_photo else None,
        "audio": _heard(studio, studio.speech) if has_speech else None,
    }


def _described(photo: Photo) -> dict[str, Any]:
    """Size and faces of a portrait. Boxes are fractions of its width and height."""
    height, width = photo.rgb.shape[:2]
    return {
        "width_px": width,
        "height_px": height,
        "faces": [
            {
                "number": number,
                "place": place(box, width),
                "box": [box[0] / width, box[1] / height, box[2] / width, box[3] / height],
            }
            for number, box in enumerate(photo.boxes, 1)
        ],
        "face": largest(photo.boxes) if photo.boxes else None,
    }


def _heard(studio: Studio, speech: Speech) -> dict[str, Any]:
    frames = speech.sound.num_frames(studio.pipeline.info.fps)
    return {"duration_s": speech.sound.duration_s, "frames": frames}


def _jpeg(rgb: Bytes) -> flask.Response:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=92)
    return flask.Response(file.getvalue(), mimetype="image/jpeg")


def _portrait(studio: Studio) -> flask.Response:
    rgb = studio.photo.rgb
    scale = SHOWN_EDGE_PX / max(rgb.shape[:2])
    if scale < 1:
        size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    return _jpeg(rgb)


def _frame(studio: Studio) -> flask.Response:
    return _jpeg(studio.framed(flask.request.args.get("face", None, type=int)))


def _audio(studio: Studio) -> flask.Response:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(AUDIO_HZ)
        file.writeframes((np.clip(studio.speech.sound.mono, -1, 1) * 32767).astype("<i2").tobytes())
    data.seek(0)
    return flask.send_file(data, "audio/wav", conditional=True)


def _make(studio: Studio) -> tuple[dict[str, Any], int]:
    flask.request.max_content_length = MAX_SETTINGS_BYTES
    try:
        asked = Settings.model_validate(flask.request.get_json())
    except ValidationError as error:
        return {"error": first_invalid(error)}, 400
    studio.begin(asked)
    return _state(studio), 202


def _cancel(studio: Studio) -> dict[str, Any]:
    studio.cancel()
    return _state(studio)


def _state(studio: Studio) -> dict[str, Any]:
    state = studio.state
    return {
        "status": state.status,
        "phase": state.progress.phase,
        "done": state.progress.done,
        "total": state.progress.total,
        "detail": state.progress.detail,
        "error": state.error,
        "videos": [path.name for path in state.videos],
    }


def _video(studio: Studio, number: int) -> flask.Response:
    videos = studio.state.videos
    if not 1 <= number <= len(videos) or not videos[number - 1].is_file():
        flask.abort(404)
    return flask.send_file(videos[number - 1], "video/mp4", conditional=True)
