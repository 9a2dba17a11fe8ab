"""The local server behind `talkforge view` and `talkforge audit`.

Addresses, all below a random token, so that no other page and no other user of the machine can ask:

    /<token>/                    the page; also page.js and page.css
    /<token>/about               the data set, reasons, keys
    /<token>/clips               ids of the clips that a filter leaves, a page at a time
    /<token>/clip/<id>           one clip: ledger row, transcript, what was said of it
    /<token>/clip/<id>/video     its MP4, whole or by ranges
    /<token>/clip/<id>/marks     what is drawn over its frames
    /<token>/clip/<id>/image     its thumbnail
    /<token>/clip/<id>/review    POST: what somebody says of it

`talkforge.local_page` says who is answered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import flask
import jinja2
from pydantic import ValidationError

from talkforge import local_page
from talkforge.curation.verdict import REJECTIONS
from talkforge.pipeline.review import BAD_REASONS
from talkforge.schemas.errors import first_invalid
from talkforge.schemas.package_files import package_text
from talkforge.schemas.records import ReviewRow
from talkforge.viewer.library import Filter, Library, Show, Span, packed, shapes

PACKAGE = "talkforge.viewer"

CHUNK_BYTES = 1 << 20
"""Bytes of a video that are in memory at a time."""

PAGE_CLIPS = 200
"""Most clips in one answer of `clips`; page.js asks for pages of this size."""

NOTE_LENGTH = 2000
"""Most characters of a note."""

MAX_BODY_BYTES = 64_000
"""Most bytes of a request."""


@dataclass(frozen=True)
class Mode:
    """What the page is for.

    Attributes:
        name: `view`, or `audit`: labels only, in the order of a sample, without the verdict until there is a
            label.
        title: what the page is called.
        first: id of the clip to begin with; empty: the first one, in an audit the first without a label.
    """

    name: str
    title: str
    first: str = ""


def make_app(library: Library, mode: Mode, token: str) -> flask.Flask:
    """The application, to be served or tested.

    Args:
        library: what it shows.
        mode: what it is for.
        token: what every address begins with.
    """
    get: dict[str, Callable[..., Any]] = {
        "/": functools.partial(_page, mode),
        "/about": functools.partial(_about, library, mode),
        "/clips": functools.partial(_clips, library),
        "/clip/<clip_id>": functools.partial(_clip, library),
        "/clip/<clip_id>/video": functools.partial(_video, library),
        "/clip/<clip_id>/marks": functools.partial(_marks, library),
        "/clip/<clip_id>/image": functools.partial(_image, library),
    }
    post = {"/clip/<clip_id>/review": functools.partial(_review, library)}
    app = local_page.make_app(token, PACKAGE, get, post, MAX_BODY_BYTES)

    @app.before_request
    def known() -> None:
        clip_id = (flask.request.view_args or {}).get("clip_id")
        if clip_id is not None and clip_id not in library:
            flask.abort(404)

    return app


def listen(library: Library, mode: Mode, port: int = 0) -> local_page.Server:
    """Begin to listen on 127.0.0.1.

    Args:
        library: what the page shows.
        mode: what it is for.
        port: TCP port; 0 takes a free one.

    Raises:
        CommandError: the port is taken or not allowed.
    """
    return local_page.listen(functools.partial(make_app, library, mode), port)


# ------------------------------------------------------------------------------------- answers


def _page(mode: Mode) -> str:
    template = jinja2.Environment(autoescape=True).from_string(package_text(PACKAGE, "page.html.j2"))
    return template.render(mode=mode, reasons=list(enumerate(BAD_REASONS.values(), 1)))


def _about(library: Library, mode: Mode) -> dict[str, Any]:
    meanings = {rejection.code: rejection.meaning for rejection in REJECTIONS}
    reviews = library.reviews()
    return {
        "mode": mode.name,
        "first": mode.first or _first_open(library, mode, reviews),
        "bad": list(BAD_REASONS),
        "reasons": {code: meanings.get(code, code) for code in library.reasons()},
        "labelled": _labelled(library, reviews),
        "clips": len(library.clip_ids),
    }


def _first_open(library: Library, mode: Mode, reviews: Mapping[str, ReviewRow]) -> str:
    if mode.name != "audit":
        return ""
    return next((key for key in library.clip_ids if not _has_label(reviews.get(key))), "")


def _has_label(row: ReviewRow | None) -> bool:
    return row is not None and row.label != "none"


def _labelled(library: Library, reviews: Mapping[str, ReviewRow]) -> int:
    return sum(_has_label(reviews.get(key)) for key in library.clip_ids)


def _clips(library: Library) -> dict[str, Any]:
    """Ids from `first` on; with `at`, the page in which that clip lies."""
    given = flask.request.args
    if (show := given.get("show", "all")) not in get_args(Show):
        flask.abort(400)
    reviews = library.reviews()
    found = library.listed(Filter(show, given.get("reason", ""), given.get("begins", "")), reviews)  # type: ignore[arg-type]
    at = given.get("at", "")
    first = max(0, given.get("first", 0, type=int))
    if at in library and at in found:
        first = found.index(at) // PAGE_CLIPS * PAGE_CLIPS
    shown = found[first : first + PAGE_CLIPS]
    return {
        "total": len(found),
        "first": first,
        "clips": shown,
        "labelled": _labelled(library, reviews),
    }


def _clip(library: Library, clip_id: str) -> dict[str, Any]:
    marks = library.marks(clip_id)
    clip = library.clip(clip_id)
    said = library.reviews().get(clip_id, ReviewRow(clip_id=clip_id))
    return {
        "clip_id": clip_id,
        "fps": clip.fps,
        "num_frames": clip.num_frames,
        "width_px": clip.width_px,
        "height_px": clip.height_px,
        "row": library.row(clip_id),
        "text": library.text(clip_id),
        "review": said.model_dump(),
        "marks": shapes(marks) if marks else None,
    }


def _marks(library: Library, clip_id: str) -> flask.Response:
    marks = library.marks(clip_id)
    return flask.Response(packed(marks) if marks else b"", mimetype="application/octet-stream")


def _image(library: Library, clip_id: str) -> flask.Response:
    if not (jpeg := library.thumbnail(clip_id)):
        flask.abort(404)
    return flask.Response(jpeg, mimetype="image/jpeg")


def _video(library: Library, clip_id: str) -> flask.Response:
    span = library.video(clip_id)
    asked = flask.request.range
    begin, end, status = 0, span.size, 200
    if asked is not None and asked.units == "bytes" and len(asked.ranges) == 1:
        within = asked.range_for_length(span.size)
        if within is None:
            refused = flask.Response(status=416, mimetype="video/mp4")
            refused.headers["Content-Range"] = f"bytes */{span.size}"
            return refused
        (begin, end), status = within, 206
    response = flask.Response(_blocks(library, span, begin, end), status, mimetype="video/mp4")
    response.headers["Accept-Ranges"] = "bytes"
    response.content_length = end - begin
    if status == 206:
        response.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{span.size}"
    return response


def _blocks(library: Library, span: Span, begin: int, end: int) -> Iterator[bytes]:
    for at in range(begin, end, CHUNK_BYTES):
        yield library.read(span, at, min(at + CHUNK_BYTES, end))


def _review(library: Library, clip_id: str) -> tuple[dict[str, Any], int]:
    """Saves what the body says; what it does not say stays."""
    given = flask.request.get_json()
    known: Sequence[str] = ("decision", "label", "reason", "note")
    if not isinstance(given, dict) or set(given) - set(known):
        return {"error": f"expected an object with {', '.join(known)}"}, 400
    before = library.reviews().get(clip_id, ReviewRow(clip_id=clip_id))
    try:
        row = ReviewRow.model_validate(before.model_dump() | given)
    except ValidationError as error:
        return {"error": first_invalid(error)}, 400
    if row.reason and (row.label != "bad" or row.reason not in BAD_REASONS):
        return {"error": f"reason: expected one of {', '.join(BAD_REASONS)} for a bad clip"}, 400
    if len(row.note) > NOTE_LENGTH:
        return {"error": f"note: expected at most {NOTE_LENGTH} characters, found {len(row.note)}"}, 400
    return library.save(row).model_dump(), 200
