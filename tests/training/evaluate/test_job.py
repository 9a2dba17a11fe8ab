"""Whole evaluations of real sentences, and what becomes of bad input."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest

from talkforge.curation.media import encode_mp4
from talkforge.pipeline import cluster
from talkforge.pipeline.cluster import Cluster
from talkforge.schemas.errors import CommandError, RunError
from talkforge.training.evaluate import job
from talkforge.training.evaluate.self_test import EXPECTATIONS
from talkforge.training.evaluate.videos import VideoPair
from tests.conftest import CLIPS

KEYS = ("grid_bbaf2n", "grid_brbk7n", "grid_id2_swwp2s", "grid_lrwp9a")
SHORT = job.Settings(max_s=1.6, self_test_videos=2)


@dataclass(frozen=True)
class Evaluated:
    """A report, and the folders that it is of."""

    generated: Path
    truth: Path
    out: Path
    document: dict[str, Any]


def blurred(source: Path, out: Path, strength_px: float) -> None:
    """The video as a weak model might make it: softened, without sound."""
    with av.open(str(source)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    soft = (np.asarray(cv2.GaussianBlur(rgb, (0, 0), strength_px), np.uint8) for rgb in frames)
    encode_mp4(out, soft, 25.0, None, 20, "ultrafast")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluated")
    generated, truth, out = folder / "generated", folder / "truth", folder / "report"
    generated.mkdir()
    truth.mkdir()
    for key in KEYS if full else (KEYS[0], KEYS[3]):
        shutil.copy(CLIPS / f"{key}.mpg", truth)
        blurred(CLIPS / f"{key}.mpg", generated / f"{key}.mp4", 1.5)
    (generated / "broken.mp4").write_bytes(b"no video")
    shutil.copy(CLIPS / f"{KEYS[1]}.mpg", truth / "broken.mpg")
    (generated / "lonely.mp4").write_bytes(b"")
    settings = job.Settings(max_s=20.0, self_test_videos=4) if full else SHORT
    return Evaluated(generated, truth, out, job.evaluate(generated, truth, out, settings))


def metric(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in document["metrics"] if one["name"] == name]
    return dict(found)


def test_blur_shows_where_it_should_and_nowhere_else(evaluated: Evaluated) -> None:
    document = evaluated.document
    assert document["videos"] == len(document["rows"]) >= 2
    assert metric(document, "sharpness")["difference"]["high"] < 0
    assert metric(document, "lip_aperture_r")["generated"]["mean"] > 0.7
    assert metric(document, "face_seen_fraction")["generated"]["mean"] == 1.0
    assert metric(document, "identity_similarity")["difference"]["mean"] < 0
    delay = metric(document, "av_delay_ms")["generated"]
    assert delay["mean"] is None or abs(delay["mean"]) <= 80
    assert metric(document, "fid")["why_not"].startswith("fid_inception: no package carries")
    assert metric(document, "idc")["why_not"] == "needs DINO ViT-B/16, which this version does not read"


def test_bad_videos_are_rows_with_a_reason(evaluated: Evaluated) -> None:
    assert list(evaluated.document["failed"]) == ["broken"]
    assert "broken.mp4" in evaluated.document["failed"]["broken"]
    assert evaluated.document["unpaired"] == {"lonely.mp4": "no true video is called lonely"}
    with (evaluated.out / "videos.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert {row["status"] for row in rows.values()} == {"measured", "failed", "unpaired"}
    assert rows["broken"]["reason"] == evaluated.document["failed"]["broken"] and not rows["broken"]["jitter"]
    assert float(rows[KEYS[0]]["sharpness"]) < float(rows[KEYS[0]]["true_sharpness"])


def test_the_self_test_ranks_real_sentences_as_it_should(evaluated: Evaluated) -> None:
    tested = evaluated.document["self_test"]
    wanted = {(one.version, one.metric) for one in EXPECTATIONS if one.metric not in ("fid", "sync_c")}
    assert {(one["version"], one["metric"]) for one in tested["checks"]} == wanted
    wrong = [
        (one["version"], one["metric"], one["found"], one["compared"])
        for one in tested["checks"]
        if one["passed"] is not True
    ]
    assert wrong == []


def test_the_page_opens_offline_and_has_every_section(evaluated: Evaluated) -> None:
    page = (evaluated.out / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    for section in ("free", "paper", "self-test", "videos", "left-out", "how"):
        assert f'id="{section}"' in page
    assert page.count("data:image/jpeg;base64,") == evaluated.document["videos"]
    assert "not computed: needs DINO" in page and "no true video is called lonely" in page
    assert "intervals over so few are too narrow" in page


def test_the_tables_hold_the_numbers_of_the_document(evaluated: Evaluated) -> None:
    document = json.loads((evaluated.out / "report.json").read_text(encoding="utf-8"))
    assert document["videos"] == evaluated.document["videos"] and document["version"] == job.VERSION
    with (evaluated.out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["jitter"]["generated_mean"]) == metric(document, "jitter")["generated"]["mean"]
    assert rows["fvd"]["generated_mean"] == "" and rows["fvd"]["why_not"].startswith("fvd_i3d")
    latex = (evaluated.out / "table.tex").read_text(encoding="utf-8")
    assert (
        "FantasyTalking, tame & 27.70 & 301.2 & 4.226 & 9.251 & 0.961 & 0.989 & 11.74 & -- & 0.536" in latex
    )
    assert r"-- & -- & -- & -- & -- & -- & -- & -- & -- \\" in latex  # none of the nine has its weights here
    models = {model["name"] for model in document["models"]}
    assert {"centerface", "face_landmarker"} <= models


def test_what_was_measured_is_not_measured_again(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    shutil.copytree(evaluated.out, out)
    monkeypatch.setattr(job, "prepare", lambda *_: pytest.fail("a pair was measured again"))
    (evaluated.generated / "broken.mp4").rename(tmp_path / "broken.mp4")
    try:
        again = job.evaluate(
            evaluated.generated,
            evaluated.truth,
            out,
            job.Settings(evaluated.document["settings"]["max_s"], 0),
            against=evaluated.out,
        )
    finally:
        (tmp_path / "broken.mp4").rename(evaluated.generated / "broken.mp4")
    assert again["rows"] == evaluated.document["rows"] and again["self_test"] is None
    against = {one["name"]: one for one in again["against"]["metrics"]}
    assert again["against"]["videos"] == again["videos"]
    assert {one["difference"]["mean"] for one in against.values()} == {0.0}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 'id="against"' in page and "It was not run." in page
    with pytest.raises(pytest.fail.Exception):  # another length is another measurement
        job.evaluate(evaluated.generated, evaluated.truth, out, job.Settings(1.0, 0))


def test_another_report_is_refused_by_its_version(evaluated: Evaluated, tmp_path: Path) -> None:
    def against(text: str) -> str:
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
        with pytest.raises(CommandError) as refused:
            job.evaluate(evaluated.generated, evaluated.truth, tmp_path / "out", SHORT, against=tmp_path)
        return str(refused.value)

    assert re.search(r"expected version 1, found 9: evaluate those videos again$", against('{"version": 9}'))
    assert against("{}").endswith("report.json: is damaged")
    (tmp_path / "report.json").unlink()
    with pytest.raises(CommandError, match="expected a report of `talkforge evaluate`"):
        job.evaluate(evaluated.generated, evaluated.truth, tmp_path / "out", SHORT, against=tmp_path)


def test_nothing_but_bad_videos_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    for name in ("generated", "truth"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"no video")
    with pytest.raises(CommandError, match=r"^none of 1 pairs could be measured; the first: .*a\.mp4"):
        job.evaluate(tmp_path / "generated", tmp_path / "truth", tmp_path / "out", SHORT)
    with pytest.raises(CommandError, match=r"^none of the videos of .*truth could be measured$"):
        job.run_self_test(tmp_path / "truth", tmp_path / "out", SHORT)


def test_odd_names_stay_in_the_folder(tmp_path: Path) -> None:
    text, arrays = job._names(tmp_path, "../over")
    assert text.parent == arrays.parent == tmp_path and re.fullmatch(r"[0-9a-f]{32}\.json", text.name)
    assert job._names(tmp_path, "clip-1.take_2")[0].name == "clip-1.take_2.json"


class StandInRay:
    """Runs a task when its result is asked for. The worker of one pair is lost."""

    class exceptions:  # noqa: N801 (as Ray names it)
        class RayError(Exception):
            """What Ray raises."""

    def __init__(self, lost: str) -> None:
        self.lost, self.started = lost, 0

    def remote(self, **_: Any) -> Any:
        def start(settings: job.Settings) -> Any:
            assert settings == SHORT
            self.started += 1
            return SimpleNamespace(measure=SimpleNamespace(remote=lambda *given: given))

        return lambda _: SimpleNamespace(remote=start)

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout > 0
        return references[:1], references[1:]

    def get(self, reference: Any) -> str:
        pair, made, kept = reference
        if pair.key == self.lost:
            raise self.exceptions.RayError("died")
        if pair.key == "broken":
            return "it is broken"
        job._keep(kept, job.PairResult(pair.key, {"jitter": 1.0}, {}, (), b"", {}, {}), made)
        return ""


def test_several_processes_share_the_pairs_and_a_lost_one_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = StandInRay("b")

    class StandInCluster(Cluster):
        def __init__(self, workers: int) -> None:
            assert workers == 2
            self.ray = ray

        def check(self) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(job, "Cluster", StandInCluster)
    monkeypatch.setattr(cluster, "error_of", lambda _: RunError("the worker died", "worker"))
    pairs = [(VideoPair(key, tmp_path, tmp_path), f"of {key}") for key in ("a", "b", "broken", "c")]
    found = {pair.key: outcome for pair, outcome in job._on_ray(pairs, tmp_path, SHORT, 2)}
    assert found["b"] == "the worker died" and found["broken"] == "it is broken"
    assert [found[key].generated for key in "ac"] == [{"jitter": 1.0}] * 2  # type: ignore[union-attr]
    assert ray.started == 3  # two, and one in the place of the one that died
    monkeypatch.setattr(cluster, "error_of", lambda _: RunError("the disk is full", "storage"))
    with pytest.raises(RunError, match="the disk is full"):
        list(job._on_ray(pairs, tmp_path, SHORT, 2))


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError(28, "No space left on device"), "storage"), (MemoryError(), "memory")]
)
def test_trouble_of_the_machine_is_no_fault_of_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    def measure(*_: object) -> None:
        raise error

    monkeypatch.setattr(job, "measure_pair", measure)
    waiting = [(VideoPair("a", tmp_path, tmp_path), "made")]
    with pytest.raises(RunError) as raised:
        list(job._here(waiting, tmp_path, SHORT, None, None, tmp_path, {}))  # type: ignore[arg-type]
    assert raised.value.kind == kind and str(raised.value).startswith("a: ")
