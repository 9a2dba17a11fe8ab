"""One evaluation: pair the videos, measure each pair, test the measures on known faults, write the report.

OUT/index.html       the report; opens offline
OUT/report.json      all numbers
OUT/videos.csv       one row for each video
OUT/metrics.csv      one row for each metric
OUT/table.tex        the paper's table with a row for these videos
OUT/videos/KEY.json  what was measured of a pair: it is not measured again
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from talkforge.curation.media.probe import content_hash
from talkforge.pipeline.cluster import Cluster
from talkforge.pipeline.dataset import tool_version
from talkforge.schemas import scratch
from talkforge.schemas.arrays import Bytes, Doubles
from talkforge.schemas.errors import CommandError, MediaError, RunError, TalkforgeError, kind_of, one_line
from talkforge.schemas.npz import npz_bytes, read_npz
from talkforge.schemas.progress import ProgressCallback, counted, no_progress
from talkforge.training.evaluate import report, self_test, videos
from talkforge.training.evaluate.figures import compare, figures
from talkforge.training.evaluate.framing import CRF, MAX_EDGE_PX, MAX_FPS, PRESET, PreparedPair, prepare
from talkforge.training.evaluate.measures import Models, Values, VideoTrace, trace_frames, values_of
from talkforge.training.evaluate.published import PaperNetworks, distance
from talkforge.training.evaluate.self_test import TestedVideo
from talkforge.training.evaluate.videos import Pairing, VideoPair

log = logging.getLogger(__name__)

VERSION = 1
"""Of report.json, and of what is kept of a pair."""

SELF_TEST_VIDEOS = 4
"""True videos of a report's self-test."""

MAX_S = 20.0
"""Longest span of a video that is compared, s."""

STRIP_FRAMES, STRIP_HEIGHT_PX = 5, 88
"""Frames of a video that the report shows, and their height."""

_SAFE = re.compile(r"[^\w.-]")


@dataclass(frozen=True)
class Settings:
    """How videos are evaluated.

    Attributes:
        max_s: longest span of a video that is compared, s.
        self_test_videos: true videos of the self-test; 0: none.
        identity: face embedder, as `identity.model` of the configuration of curation.
    """

    max_s: float = MAX_S
    self_test_videos: int = SELF_TEST_VIDEOS
    identity: str = "auto"


@dataclass(frozen=True)
class PairResult:
    """What was measured of one pair.

    Attributes:
        key: of the pair.
        generated: measures of the generated video.
        truth: of the true one.
        steps: what was done to both before.
        strip: frames of both, as JPEG: the generated ones above the true ones.
        generated_features: [n, D] by 'fid' and 'fvd'.
        true_features: likewise.
    """

    key: str
    generated: Values
    truth: Values
    steps: tuple[str, ...]
    strip: bytes
    generated_features: Mapping[str, Doubles]
    true_features: Mapping[str, Doubles]


def evaluate(
    generated: Path,
    reference: Path,
    out: Path,
    settings: Settings = Settings(),
    *,
    against: Path | None = None,
    workers: int = 1,
    show: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """Evaluate generated videos against true ones, and write the report.

    Args:
        generated: folder of generated videos.
        reference: folder of true videos, or of a data set.
        out: folder of the report, which is made where it is not there.
        settings: how.
        against: folder of another report, whose videos are compared with these one by one.
        workers: processes that measure pairs, by Ray on this machine. 1: this process.
        show: gets the progress.

    Returns:
        The content of report.json.

    Raises:
        CommandError: folders or the other report cannot be used, or no pair could be measured.
        ModelError: weights are missing.
        RunError: the report cannot be written.
    """
    other = _read_report(against) if against else None
    scratch.make_out(out, "videos")
    with scratch.folder() as folder:
        pairing = videos.pair(generated, reference, folder)
        show(counted("evaluating", 0, len(pairing.pairs), "videos"))
        models, networks = Models.load(settings.identity), PaperNetworks.load()
        halves: dict[str, TestedVideo] = {}
        kept = (out / "videos").absolute()
        results, failed = _measured(pairing, kept, settings, models, networks, folder, halves, workers, show)
        if not results:
            first = next(iter(failed.values()))
            raise CommandError(f"none of {len(pairing.pairs)} pairs could be measured; the first: {first}")
        measured = {result.key for result in results}
        wanted = [pair for pair in pairing.pairs if pair.key in measured][: settings.self_test_videos]
        tested = _tested(wanted, halves, settings, models, networks, folder, show)
    document = _document(generated, reference, settings, pairing, results, failed, models, networks)
    document["self_test"] = tested
    document["against"] = None if other is None else _compared(document, other, str(against))
    _write(out, document, {result.key: result.strip for result in results})
    return document


def run_self_test(
    reference: Path,
    out: Path,
    settings: Settings = Settings(),
    show: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """The self-test alone, on the first true videos of a folder or data set. Writes `self_test.json`.

    Args:
        reference: folder of true videos, or of a data set.
        out: folder of the result.
        settings: how, and on how many videos.
        show: gets the progress.

    Returns:
        The content of the file.

    Raises:
        CommandError: there are no videos, or none can be measured.
        ModelError: weights are missing.
        RunError: the file cannot be written.
    """
    scratch.make_out(out, "videos")
    with scratch.folder() as folder:
        found = videos.only_true(reference, folder)
        models, networks = Models.load(settings.identity), PaperNetworks.load()
        wanted = found.pairs[: settings.self_test_videos or SELF_TEST_VIDEOS]
        tested = _tested(wanted, {}, settings, models, networks, folder, show)
    if tested is None:
        raise CommandError(f"none of the videos of {reference} could be measured")
    scratch.write_text(out / "self_test.json", json.dumps(tested, indent=1))
    return tested


# --------------------------------------------------------------------------- pairs


Outcome = PairResult | str
"""What was measured of a pair, or why nothing was."""


def _measured(
    pairing: Pairing,
    kept: Path,
    settings: Settings,
    models: Models,
    networks: PaperNetworks,
    folder: Path,
    halves: dict[str, TestedVideo],
    workers: int,
    show: ProgressCallback,
) -> tuple[list[PairResult], dict[str, str]]:
    """Results of the pairs, and why others have none. The first true videos go into `halves`."""
    results: dict[str, PairResult] = {}
    failed: dict[str, str] = {}
    waiting: list[tuple[VideoPair, str]] = []
    described = [models.described(), networks.described()]
    for pair in pairing.pairs:
        try:
            made = _fingerprint(pair, settings, described)
        except MediaError as error:
            failed[pair.key] = one_line(error)
            continue
        if (result := _kept(kept, pair.key, made)) is None:
            waiting.append((pair, made))
        else:
            results[pair.key] = result
    if workers > 1 and len(waiting) > 1:
        found = _on_ray(waiting, kept, settings, min(workers, len(waiting)))
    else:
        found = _here(waiting, kept, settings, models, networks, folder, halves)
    for pair, outcome in found:
        if isinstance(outcome, str):
            failed[pair.key] = outcome
        else:
            results[pair.key] = outcome
        show(counted("evaluating", len(results) + len(failed), len(pairing.pairs), "videos"))
    return [results[pair.key] for pair in pairing.pairs if pair.key in results], failed


def _here(
    waiting: Sequence[tuple[VideoPair, str]],
    kept: Path,
    settings: Settings,
    models: Models,
    networks: PaperNetworks,
    folder: Path,
    halves: dict[str, TestedVideo],
) -> Iterator[tuple[VideoPair, Outcome]]:
    """Measure pairs in this process."""
    for number, (pair, made) in enumerate(waiting):
        own = _own_folder(folder, number)
        try:
            result, half = measure_pair(pair, own, settings, models, networks)
        except (MediaError, OSError, MemoryError) as error:
            yield pair, _reason(pair, error)
            continue
        _keep(kept, result, made)
        if len(halves) < settings.self_test_videos:
            halves[pair.key] = half
        else:
            shutil.rmtree(own)
        yield pair, result


def _reason(pair: VideoPair, error: Exception) -> str:
    """Why a pair cannot be measured.

    Raises:
        RunError: it is not the videos' fault.
    """
    if isinstance(error, MediaError) or kind_of(error) == "video":
        return one_line(error)
    raise RunError(f"{pair.key}: {one_line(error)}", kind_of(error)) from None


class PairWorker:
    """Measures pairs in a process of its own, with networks that are loaded once.

    Args:
        settings: how videos are evaluated.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models, self._networks = Models.load(settings.identity), PaperNetworks.load()

    def measure(self, pair: VideoPair, made: str, kept: Path) -> str:
        """Measure one pair and keep the result. Returns why it could not be measured, or nothing."""
        with scratch.folder() as folder:
            found = _here([(pair, made)], kept, self._settings, self._models, self._networks, folder, {})
            ((_, outcome),) = found
        return outcome if isinstance(outcome, str) else ""


def _on_ray(
    waiting: Sequence[tuple[VideoPair, str]], kept: Path, settings: Settings, workers: int
) -> Iterator[tuple[VideoPair, Outcome]]:
    """Measure pairs in processes on this machine. One whose worker dies is told, and another goes on."""
    cluster = Cluster(workers)
    try:
        remote = cluster.ray.remote(num_cpus=1)(PairWorker)
        answers = cluster.share(
            waiting,
            workers,
            lambda: remote.remote(settings),
            lambda worker, job: worker.measure.remote(*job, kept),
        )
        for (pair, made), why in answers:
            if isinstance(why, Exception):
                if getattr(why, "kind", None) not in ("worker", "memory"):
                    raise why  # no networks, no disk, no Ray
                why = one_line(why)
            result = None if why else _kept(kept, pair.key, made)
            yield pair, result or why or "what was measured of it cannot be read"
    finally:
        cluster.close()


def _own_folder(folder: Path, number: int) -> Path:
    own = folder / f"pair-{number}"
    own.mkdir(exist_ok=True)
    return own


def measure_pair(
    pair: VideoPair, folder: Path, settings: Settings, models: Models, networks: PaperNetworks
) -> tuple[PairResult, TestedVideo]:
    """Prepare a pair and measure both videos.

    Args:
        pair: the files.
        folder: for the prepared videos.
        settings: how.
        models: the networks of the measures that need no download.
        networks: those of the paper's metrics.

    Returns:
        What was measured, and its true half, for the self-test.

    Raises:
        MediaError: a file cannot be read, the two do not fit each other, or the true one shows no face.
    """
    true = _true_half(prepare(pair, folder, models, settings.max_s), models, networks)
    ready, truth = true.pair, true.trace
    made = trace_frames(ready.generated, ready.num_frames, ready.fps, models, truth.boxes)
    values, features = _values(ready, made, truth, models, networks)
    strip = _strip([ready.generated, ready.truth], ready.num_frames)
    result = PairResult(pair.key, values, true.values, ready.steps, strip, features, true.features)
    return result, true


def _true_half(ready: PreparedPair, models: Models, networks: PaperNetworks) -> TestedVideo:
    """The measures of the true video of a pair."""
    truth = trace_frames(ready.truth, ready.num_frames, ready.fps, models)
    if not truth.landmarks.seen.any():
        raise MediaError(f"{ready.key}: expected a face in the true video, found none")
    return TestedVideo(ready, truth, *_values(ready, truth, truth, models, networks))


def _values(
    ready: PreparedPair, trace: VideoTrace, truth: VideoTrace, models: Models, networks: PaperNetworks
) -> tuple[Values, dict[str, Doubles]]:
    """Measures of one of the two videos, and its features."""
    frames, sound = ready.generated, ready.generated_sound
    if trace is truth:
        frames, sound = ready.truth, ready.true_sound
    published, features = networks.of_video(frames, trace, sound)
    return {**published, **values_of(trace, truth, sound, models)}, features


def _tested(
    wanted: Sequence[VideoPair],
    halves: Mapping[str, TestedVideo],
    settings: Settings,
    models: Models,
    networks: PaperNetworks,
    folder: Path,
    show: ProgressCallback,
) -> dict[str, Any] | None:
    """The self-test on true videos, of which some were measured already; None where none can be."""
    tested: list[TestedVideo] = []
    for number, pair in enumerate(wanted):
        if (half := halves.get(pair.key)) is None:
            with suppress(MediaError):
                ready = prepare(pair, _own_folder(folder, number), models, settings.max_s)
                half = _true_half(ready, models, networks)
        if half is not None:
            tested.append(half)
    if not tested:
        return None
    found, means = self_test.run(tested, models, networks, folder, show)
    return {
        "videos": [one.pair.key for one in tested],
        "versions": {name: self_test.VERSIONS[name] for name in means},
        "means": means,
        "checks": [asdict(check) for check in found],
    }


def _strip(sides: Iterable[Iterable[Bytes]], num_frames: int) -> bytes:
    """A JPEG of evenly spaced frames, one row for each video."""
    wanted = set(np.linspace(0, num_frames - 1, STRIP_FRAMES).round().astype(int).tolist())
    rows = []
    for frames in sides:
        shown = [rgb for k, rgb in enumerate(frames) if k in wanted]
        width = round(shown[0].shape[1] * STRIP_HEIGHT_PX / shown[0].shape[0])
        row = [cv2.resize(rgb, (width, STRIP_HEIGHT_PX), interpolation=cv2.INTER_AREA) for rgb in shown]
        rows.append(np.concatenate(row, axis=1))
    image = np.concatenate(rows)
    _, data = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 80))
    return bytes(data)


# --------------------------------------------------------------------------- going on


def _fingerprint(pair: VideoPair, settings: Settings, described: Sequence[Any]) -> str:
    """What the measures of a pair depend on; `described`: the networks."""
    parts = [
        VERSION, tool_version(), content_hash(pair.generated), content_hash(pair.truth), settings.max_s,
        *described,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _names(kept: Path, key: str) -> tuple[Path, Path]:
    """Files of a pair. A key that no file can have is replaced by its hash."""
    name = key if not _SAFE.search(key) and len(key) < 100 else hashlib.sha256(key.encode()).hexdigest()[:32]
    return kept / f"{name}.json", kept / f"{name}.npz"


def _keep(kept: Path, result: PairResult, made: str) -> None:
    text, arrays = _names(kept, result.key)
    sides = (("generated", result.generated_features), ("truth", result.true_features))
    features = {f"{side}/{name}": array for side, found in sides for name, array in found.items()}
    with scratch.replacing(arrays) as part:
        part.write_bytes(npz_bytes(**features))
    described = {
        "made": made,
        "key": result.key,
        "generated": result.generated,
        "truth": result.truth,
        "steps": result.steps,
        "strip": base64.b64encode(result.strip).decode(),
    }
    scratch.write_text(text, json.dumps(described))


def _kept(kept: Path, key: str, made: str) -> PairResult | None:
    """What an earlier run measured of the same files; None where there is nothing, or it was another."""
    text, arrays = _names(kept, key)
    try:
        found = json.loads(text.read_text(encoding="utf-8"))
        if found["made"] != made:
            return None
        features: dict[str, dict[str, Doubles]] = {"generated": {}, "truth": {}}
        for name, array in read_npz(arrays.read_bytes(), arrays.name).items():
            side, _, metric = name.partition("/")
            features[side][metric] = np.asarray(array, np.float64)
        return PairResult(
            key, found["generated"], found["truth"], tuple(found["steps"]),
            base64.b64decode(found["strip"]), features["generated"], features["truth"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, TalkforgeError):
        return None


# --------------------------------------------------------------------------- the document


def _document(
    generated: Path,
    reference: Path,
    settings: Settings,
    pairing: Pairing,
    results: Sequence[PairResult],
    failed: Mapping[str, str],
    models: Models,
    networks: PaperNetworks,
) -> dict[str, Any]:
    of_sets = {
        name: distance(
            name,
            [one.generated_features[name] for one in results if name in one.generated_features],
            [one.true_features[name] for one in results if name in one.true_features],
        )
        for name in ("fid", "fvd")
    }
    why_not = dict(networks.why_not)
    if models.embedder is None:
        why_not |= dict.fromkeys(("identity_similarity", "identity_drift"), "no face embedder is here")
    found = figures([one.generated for one in results], [one.truth for one in results], of_sets, why_not)
    return {
        "version": VERSION,
        "tool_version": tool_version(),
        "generated": str(generated),
        "reference": str(reference),
        "settings": {
            **asdict(settings), "max_edge_px": MAX_EDGE_PX, "max_fps": MAX_FPS,
            "codec": f"x264, crf {CRF}, {PRESET}",
        },
        "videos": len(results),
        "failed": dict(failed),
        "unpaired": pairing.unpaired,
        "metrics": [
            {**asdict(one.metric), **{k: v for k, v in asdict(one).items() if k != "metric"}} for one in found
        ],
        "rows": [
            {"key": one.key, "steps": list(one.steps), "generated": one.generated, "truth": one.truth}
            for one in results
        ],
        "fid_frames": sum(
            len(one.generated_features["fid"]) for one in results if "fid" in one.generated_features
        ),
        "models": [*models.described(), *networks.described()],
    }  # fmt: skip


def _read_report(folder: Path) -> dict[str, Any]:
    """The content of report.json of another evaluation.

    Raises:
        CommandError: there is none, it is damaged, or of another version.
    """
    path = folder / "report.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
    except OSError:
        raise CommandError(f"--against {folder}: expected a report of `talkforge evaluate`") from None
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"--against {path}: is damaged") from None
    if version != VERSION:
        raise CommandError(
            f"--against {path}: expected version {VERSION}, found {version}: evaluate those videos again"
        )
    return dict(found)


def _compared(own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Paired differences with another report.

    Raises:
        CommandError: no video is in both.
    """
    ours = {row["key"]: row for row in own["rows"]}
    theirs = {row["key"]: row for row in other["rows"]}
    keys = sorted(ours.keys() & theirs.keys())
    if not keys:
        raise CommandError(f"--against {name}: no video is in both reports")
    found = compare(
        {key: ours[key]["generated"] for key in keys},
        {key: theirs[key]["generated"] for key in keys},
        {key: ours[key]["truth"] for key in keys},
    )
    return {
        "name": name,
        "videos": len(keys),
        "metrics": [
            {"name": one.metric.name, **{k: v for k, v in asdict(one).items() if k != "metric"}}
            for one in found
        ],
    }


# --------------------------------------------------------------------------- files


def _write(out: Path, document: Mapping[str, Any], strips: Mapping[str, bytes]) -> None:
    """All files of the report; report.json last."""
    files: dict[str, Callable[[], str]] = {
        "videos.csv": lambda: report.videos_csv(document),
        "metrics.csv": lambda: report.metrics_csv(document),
        "table.tex": lambda: report.latex(document),
        "index.html": lambda: report.html(document, strips),
        "report.json": lambda: json.dumps(document, indent=1, ensure_ascii=False),
    }
    for name, text in files.items():
        scratch.write_text(out / name, text())
