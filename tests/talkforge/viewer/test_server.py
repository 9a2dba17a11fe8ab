"""The server of the page: what it answers, to whom, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import filelock
import fsspec
import numpy as np
import pytest
from flask.testing import FlaskClient

from talkforge.curation.media.probe import probe
from talkforge.local_page import POLICY
from talkforge.pipeline import jobs, review, tables
from talkforge.pipeline.annotate import TRANSCRIPTS
from talkforge.pipeline.cut import read_arrays
from talkforge.pipeline.dataset import LOCK, load_dataset, load_ingested
from talkforge.pipeline.ledger import parts_of_clips
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.snapshots import current
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import Input, ReviewRow, TranscriptRow
from talkforge.viewer import server
from talkforge.viewer.library import Filter, Library
from talkforge.viewer.server import Mode, listen, make_app
from tests.conftest import Curated

TOKEN = "secret"


def client_of(store: Store, folder: Path, title: str = "Clips") -> FlaskClient:
    return make_app(Library(store, folder), Mode("view", title), TOKEN).test_client()


@pytest.fixture
def client(measured: Curated, tmp_path: Path) -> FlaskClient:
    """Of a data set that no test changes."""
    return client_of(Store(str(measured.dataset)), tmp_path)


@pytest.fixture
def rejected(curated: Curated, tmp_path: Path) -> tuple[Store, str, FlaskClient]:
    """A data set of which one clip is rejected and in no shard, and its id."""
    store = Store(str(curated.dataset))
    key = accepted(store)[0]
    review.save(store, ReviewRow(clip_id=key, decision="drop"))
    dataset, ingested = load_dataset(store), load_ingested(store)
    jobs.shard(store, dataset, jobs.select(store, dataset, ingested), ingested)
    folder = tmp_path / "cut"
    folder.mkdir()
    return store, key, client_of(store, folder)


def ledger(store: Store) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables.from_bytes(store.read("ledger.parquet"), "").to_pylist()
    return rows


def accepted(store: Store) -> list[str]:
    return sorted(row["clip_id"] for row in ledger(store) if row["accepted"])


def samples(store: Store) -> dict[str, dict[str, bytes]]:
    snapshot = current(store)
    return {
        key: members for shard in snapshot.shards for key, members in read_samples(store, snapshot.tar(shard))
    }


def get(client: FlaskClient, path: str, **headers: str) -> Any:
    return client.get(f"/{TOKEN}/{path}", headers={name.replace("_", "-"): v for name, v in headers.items()})


# ------------------------------------------------------------------------------------- to whom


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        (f"/{TOKEN}/about", "127.0.0.1:80", 200),
        (f"/{TOKEN}/about", "localhost:8123", 200),
        (f"/{TOKEN}/about", "[::1]:80", 200),
        (f"/{TOKEN}/about", "evil.example", 404),
        (f"/{TOKEN}/about", "127.0.0.1.evil.example:80", 404),
        ("/wrong/about", "127.0.0.1", 404),
        ("/about", "127.0.0.1", 404),
        ("/", "127.0.0.1", 404),
        (f"/{TOKEN}/clip/nobody", "127.0.0.1", 404),
        (f"/{TOKEN}/clip/..%2F..%2Fdataset.json/video", "127.0.0.1", 404),
        (f"/{TOKEN}/../dataset.json", "127.0.0.1", 404),
        (f"/{TOKEN}/clips?show=nonsense", "127.0.0.1", 400),
    ],
)
def test_only_this_machine_with_the_token_is_answered(
    client: FlaskClient, path: str, host: str, status: int
) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == status
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_has_no_script_of_its_own_and_keeps_hostile_names_as_text(
    measured: Curated, tmp_path: Path
) -> None:
    title = '</title><script>alert("x")</script>'
    page = get(client_of(Store(str(measured.dataset)), tmp_path, title), "").text
    assert page.count("<script") == 1 and '<script src="page.js" defer></script>' in page
    assert "style=" not in page and "onclick" not in page and "http" not in page
    assert page.count("&lt;script&gt;") == 2


def test_its_script_writes_nothing_as_html(client: FlaskClient) -> None:
    script = get(client, "page.js")
    assert script.mimetype == "text/javascript"
    assert [
        word for word in ("innerHTML", "insertAdjacentHTML", "eval(", "document.write") if word in script.text
    ] == []
    assert get(client, "page.css").mimetype == "text/css"


# ---------------------------------------------------------------------------------- what it shows


def test_clips_are_listed_by_state_reason_beginning_and_page(
    rejected: tuple[Store, str, FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, key, client = rejected
    rows = sorted(row["clip_id"] for row in ledger(store))

    def listed(query: str) -> list[str]:
        answer = get(client, f"clips?{query}").json
        assert answer["total"] >= len(answer["clips"])
        return list(answer["clips"])

    assert listed("") == rows
    assert listed("show=accepted") == accepted(store)
    assert listed("show=rejected") == listed("reason=reviewed_drop") == listed("show=reviewed") == [key]
    assert listed("show=unreviewed") == [one for one in rows if one != key]
    assert listed(f"begins={key[:14]}") == [one for one in rows if one.startswith(key[:14])]
    assert listed("reason=noisy") == listed("show=failed") == listed("begins=<b>") == []
    monkeypatch.setattr(server, "PAGE_CLIPS", 1)
    answer = get(client, f"clips?at={rows[1]}").json
    assert (answer["clips"], answer["first"], answer["total"]) == ([rows[1]], 1, len(rows))
    assert get(client, "about").json["reasons"] == {"reviewed_drop": "Dropped by a reviewer"}


def test_a_clip_comes_with_its_row_its_text_and_its_marks(curated: Curated, tmp_path: Path) -> None:
    store = Store(str(curated.dataset))
    key, said = accepted(store)[0], "<img src=x onerror=alert(1)>"
    row = TranscriptRow(
        clip_id=key, failure=None, text=said, model="m", model_sha256="", fingerprint="f", transcript=None,
        words=(), word_times=None, turns=None, transcriber="t", version="1",
    )  # fmt: skip
    tables.write(store, f"{TRANSCRIPTS.name}.parquet", TranscriptRow, [row])
    client = client_of(store, tmp_path)
    found = get(client, f"clip/{key}").json
    (of,) = (row for row in ledger(store) if row["clip_id"] == key)
    assert (found["text"], found["review"]["decision"]) == (said, "none")
    assert found["row"]["face_px"] == of["face_px"] and "failure" not in found["row"]
    data = get(client, f"clip/{key}/marks").data
    arrays = read_arrays(store, parts_of_clips(store)[key], key, np.zeros(0, np.float32))
    at, unpacked = 0, {}
    for name, shape in found["marks"].items():
        size = 4 * int(np.prod(shape))
        unpacked[name] = np.frombuffer(data[at : at + size], "<f4").reshape(shape)
        at += size
    assert at == len(data)
    np.testing.assert_array_equal(unpacked["landmarks"], arrays.landmarks[:, :, :2])
    np.testing.assert_array_equal(unpacked["contour"], arrays.contour)
    np.testing.assert_array_equal(unpacked["valid"], arrays.lip_valid)
    assert unpacked["opening"].shape == (found["num_frames"],)
    assert get(client, f"clip/{key}/image").data[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("asked", "status", "begin", "end"),
    [
        ("", 200, 0, None),
        ("bytes=0-", 206, 0, None),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=-7", 206, -7, None),
        ("bytes=5-99999999", 206, 5, None),
        ("bytes=0-1,5-6", 200, 0, None),
        ("lines=0-1", 200, 0, None),
    ],
)
def test_the_video_of_an_accepted_clip_is_that_of_its_shard(
    measured: Curated, client: FlaskClient, asked: str, status: int, begin: int, end: int | None
) -> None:
    for key, members in samples(Store(str(measured.dataset))).items():
        answer = get(client, f"clip/{key}/video", **({"Range": asked} if asked else {}))
        mp4 = members["mp4"]
        assert (answer.status_code, answer.data) == (status, mp4[begin:end])
        if status == 206:
            first = range(len(mp4))[begin]
            assert (
                answer.headers["Content-Range"] == f"bytes {first}-{first + len(answer.data) - 1}/{len(mp4)}"
            )


def test_a_range_beyond_the_end_is_refused(measured: Curated, client: FlaskClient) -> None:
    key, members = next(iter(samples(Store(str(measured.dataset))).items()))
    answer = get(client, f"clip/{key}/video", Range="bytes=99999999-")
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(members['mp4'])}"


def test_a_clip_that_is_in_no_shard_is_cut_from_its_source_once(
    rejected: tuple[Store, str, FlaskClient], tmp_path: Path
) -> None:
    _, key, client = rejected
    answer = get(client, f"clip/{key}/video")
    (tmp_path / "x.mp4").write_bytes(answer.data)
    found = probe(tmp_path / "x.mp4", Input(uri="x.mp4"), "0" * 64)
    clip = get(client, f"clip/{key}").json
    assert answer.status_code == 200
    assert (found.width_px, found.height_px, found.has_audio) == (clip["width_px"], clip["height_px"], True)
    assert found.duration_s == pytest.approx(clip["num_frames"] / clip["fps"], abs=0.05)
    (file,) = (tmp_path / "cut").iterdir()
    before = file.stat().st_ino
    assert get(client, f"clip/{key}/video", Range="bytes=1-2").data == answer.data[1:3]
    assert file.stat().st_ino == before


def test_a_source_that_is_gone_is_said_in_one_line(
    rejected: tuple[Store, str, FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key, client = rejected
    monkeypatch.setattr(Store, "input_uri", lambda _self, uri: f"{uri}.gone")
    answer = get(client, f"clip/{key}/video")
    assert answer.status_code == 404 and ".gone" in answer.json["error"] and "\n" not in answer.json["error"]
    assert get(client, f"clip/{key}/image").status_code == 200


def test_a_clip_that_was_not_traced_has_no_marks(curated: Curated, tmp_path: Path) -> None:
    store = Store(str(curated.dataset))
    key = accepted(store)[0]
    part = parts_of_clips(store)[key]
    client = client_of(store, tmp_path)
    name = f"parts/{part}/{key}.npz"
    store.write(name, store.read(name)[:100])
    answer = get(client, f"clip/{key}")
    assert answer.status_code == 500 and name in answer.json["error"]
    library = Library(store, tmp_path)
    stopped = library.measures(key).model_copy(update={"lips": None})
    library.measures = lambda _: stopped  # type: ignore[method-assign]
    assert library.marks(key) is None


def test_names_from_the_ledger_never_leave_the_folder(curated: Curated, tmp_path: Path) -> None:
    library = Library(Store(str(curated.dataset)), tmp_path)
    library._parts["../../x"] = "../.."
    library._row_of["../../x"] = 0
    with pytest.raises(CommandError, match="expected a plain name"):
        library.measures("../../x")


# ----------------------------------------------------------------------------------- what it writes


def post(client: FlaskClient, key: str, body: Any) -> Any:
    return client.post(f"/{TOKEN}/clip/{key}/review", json=body)


def test_what_is_said_is_saved_and_what_is_not_said_stays(curated: Curated, tmp_path: Path) -> None:
    store = Store(str(curated.dataset))
    client, (key, other) = client_of(store, tmp_path), accepted(store)
    assert post(client, key, {"decision": "drop", "note": "<script>"}).status_code == 200
    assert post(client, key, {"label": "bad", "reason": "frozen"}).json["decision"] == "drop"
    row = review.read(store)[key]
    assert (row.decision, row.label, row.reason, row.note) == ("drop", "bad", "frozen", "<script>")
    assert get(client, f"clip/{key}").json["review"] == row.model_dump()
    assert post(client, other, {"label": "good"}).status_code == 200
    assert get(client, "about").json["labelled"] == 2


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"decision": "burn"}, "decision: Input should be 'keep', 'drop' or 'none'"),
        ({"clip_id": "other"}, "expected an object with decision, label, reason, note"),
        ([], "expected an object"),
        ({"label": "bad", "reason": "<b>"}, "reason: expected one of wrong_voice"),
        ({"label": "good", "reason": "frozen"}, "reason: expected one of wrong_voice"),
        ({"note": "x" * 2001}, "note: expected at most 2000 characters, found 2001"),
    ],
)
def test_what_makes_no_sense_is_refused(
    measured: Curated, client: FlaskClient, body: Any, problem: str
) -> None:
    store = Store(str(measured.dataset))
    answer = post(client, accepted(store)[0], body)
    assert answer.status_code == 400 and problem in answer.json["error"]
    assert not store.exists(review.TABLE)


def test_other_requests_are_refused(measured: Curated, client: FlaskClient) -> None:
    key = accepted(Store(str(measured.dataset)))[0]
    path = f"/{TOKEN}/clip/{key}/review"
    assert post(client, "nobody", {"decision": "drop"}).status_code == 404
    assert client.get(path).status_code == 404  # no address of the page, so no token in it that is known
    assert client.post(path, data="decision=drop").status_code == 415
    assert client.post(path, data=b"{", content_type="application/json").status_code == 400
    assert client.post(path, json={"note": "x" * 70_000}).status_code == 413


def test_a_run_at_work_is_said(curated: Curated, tmp_path: Path) -> None:
    store = Store(str(curated.dataset))
    client = client_of(store, tmp_path)
    with filelock.FileLock(curated.dataset / LOCK):
        answer = post(client, accepted(store)[0], {"decision": "drop"})
    assert answer.status_code == 409 and "another run is at work" in answer.json["error"]


def test_a_set_in_an_object_store_is_shown_and_reviewed(
    measured: Curated, s3_bucket: str, tmp_path: Path
) -> None:
    filesystem, root = fsspec.url_to_fs(f"{s3_bucket}/set")
    filesystem.put(f"{measured.dataset}/", f"{root}/", recursive=True)
    store = Store(f"{s3_bucket}/set")
    client = client_of(store, tmp_path)
    for key, members in samples(store).items():
        assert get(client, f"clip/{key}/video", Range="bytes=10-19").data == members["mp4"][10:20]
        assert post(client, key, {"decision": "keep"}).status_code == 200
    assert {row.decision for row in review.read(store).values()} == {"keep"}
    assert store.list(".writer") == []


def test_the_order_of_a_sample_is_kept(measured: Curated, tmp_path: Path) -> None:
    store = Store(str(measured.dataset))
    order = [*reversed(accepted(store))]
    library = Library(store, tmp_path, [*order, "gone"])
    assert library.clip_ids == order == library.listed(Filter(), {})


def test_it_listens_on_this_machine_only_and_a_port_that_is_taken_is_said(
    measured: Curated, tmp_path: Path
) -> None:
    library = Library(Store(str(measured.dataset)), tmp_path)
    found = listen(library, Mode("view", "x"))
    try:
        assert found._server.server_address[0] == "127.0.0.1"
        assert found.url.startswith(f"http://127.0.0.1:{found._server.port}/") and len(found.url) > 50
        with pytest.raises(CommandError, match=f"--port {found._server.port}: cannot listen there"):
            listen(library, Mode("view", "x"), found._server.port)
    finally:
        found._server.server_close()
