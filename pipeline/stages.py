"""The stages of measuring, in order. Start reading here.

    part  ->  measure  ->  embed  ->  commit            once for each part, see `executor.py`
    committed parts  ->  select  ->  cut  ->  report    as often as you like, see `jobs.py`

`measure` asks the cheapest question first and stops as soon as a clip cannot survive:

    1  vad      voice activity detection in the window's audio
    2  scan     the sparse pass: shot boundaries and faces, on small frames
    3  split    face tracks become candidate clips; cheap measures and gates, audio quality
    4  trace    the dense pass over every frame of the clips that may still be accepted, see `untraced.py`:
                landmarks, lips, joints, face crops, frame quality, active speaker
    5  sync     sync of mouth and audio, audio fingerprint
    6  embed    speech and face embeddings, in batches; on a GPU where there is one
    7  commit   tables, then `part.json`: from then on the part exists
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from talkforge.curation import clips, fingerprint, scan, trace
from talkforge.curation.audio import music, quality, speech_encoders, vad, voice
from talkforge.curation.body import joints, pose
from talkforge.curation.crop import detection_edge_px
from talkforge.curation.draw import thumbnail
from talkforge.curation.face import covered, detect, identity, landmarks, mouth_motion
from talkforge.curation.media import read_audio
from talkforge.curation.picture import scorer
from talkforge.curation.shots import network
from talkforge.curation.sync import contrastive, phones, speaker_scorer
from talkforge.curation.sync.features import audio_bands, mouth_measures
from talkforge.curation.verdict import NOT_TRACED
from talkforge.curation.weights import registry
from talkforge.curation.weights.torch import torch_device
from talkforge.pipeline import attempts, small_arrays, tables, untraced
from talkforge.pipeline.parts import Part, Window
from talkforge.pipeline.results import MeasuredClip, PartResult
from talkforge.pipeline.rows import (
    HeardWindow,
    ScannedWindow,
    cheap_measures,
    clip_audio,
    failure_row,
    outcome_row,
    seconds,
    stored_track,
    track_arrays,
    track_row,
)
from talkforge.pipeline.store import Store
from talkforge.pipeline.timelines import local_video
from talkforge.schemas import extras
from talkforge.schemas.arrays import Audio, Bytes, Floats
from talkforge.schemas.config import Device, MeasureConfig, ScanConfig, Thresholds, VoiceConfig
from talkforge.schemas.errors import FailureKind, ModelError, RunError, kind_of
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import (
    Clip,
    ClipMeasures,
    Failure,
    Identity,
    Outcome,
    Record,
    Scene,
    Speaker,
    Track,
)
from talkforge.schemas.units import features_from_frames

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The models of a measuring worker, loaded once."""

    detector: detect.FaceDetector
    shot_network: network.ShotNetwork | None
    landmarker: landmarks.FaceLandmarker
    mouth_classifier: covered.MouthClassifier | None
    pose_estimator: joints.PoseEstimator | None
    sync_scorer: contrastive.Scorer
    phone_recogniser: phones.PhoneRecogniser
    singing_detector: music.MusicDetector | None
    audio_scorer: quality.AudioScorer
    picture_scorer: scorer.PictureScorer
    face_audio_scorer: speaker_scorer.SpeakerScorer | None
    voice_encoder: voice.VoiceEncoder | None


@functools.lru_cache(maxsize=1)
def load_models(config_json: str) -> Models:
    """Models of the measuring stages for a `MeasureConfig` in JSON; kept for the process."""
    config = MeasureConfig.model_validate_json(config_json)
    cv2.setNumThreads(1)  # a worker is one thread; Ray runs as many as there are cores
    return Models(
        detector=detect.load_detector(config.scan, config.device),
        shot_network=_shot_network(config.scan, config.device),
        landmarker=landmarks.FaceLandmarker(registry.weights("face_landmarker")),
        mouth_classifier=covered.MouthClassifier() if config.lips.covered else None,
        pose_estimator=pose.load_estimator(config.motion, config.device),
        sync_scorer=contrastive.Scorer.load(),
        phone_recogniser=phones.PhoneRecogniser(),
        singing_detector=music.MusicDetector() if config.speech.singing else None,
        audio_scorer=quality.AudioScorer(config.sound),
        picture_scorer=scorer.PictureScorer(config.picture),
        face_audio_scorer=speaker_scorer.load(config.speaker, config.device),
        voice_encoder=_voice_encoder(config.voice),
    )


def _shot_network(config: ScanConfig, device: Device = "cpu") -> network.ShotNetwork | None:
    """The network that `config.scene_detector` names, None where it names none."""
    if config.scene_detector != "transnet":
        return None
    extras.require("torch", "scan.scene_detector=transnet")
    from talkforge.curation.shots.transnet import TransNet  # imports torch, which takes seconds

    return TransNet(registry.weights(TransNet.name), str(torch_device(device, "measure.device")))


def _voice_encoder(config: VoiceConfig) -> voice.VoiceEncoder | None:
    """The voice encoder, None where it is off."""
    if not config.embedding:
        return None
    extras.require("torch", "voice.embedding")
    return voice.VoiceEncoder(registry.weights(voice.NAME))


@functools.lru_cache(maxsize=1)
def load_encoders(config_json: str) -> tuple[speech_encoders.SpeechEncoder, identity.Embedder | None]:
    """Models of the embedding stage, kept for the process."""
    config = MeasureConfig.model_validate_json(config_json)
    encoder = speech_encoders.load_speech_encoder(config.speech)
    return encoder, identity.load_embedder(config.identity, config.device)


def load(config_json: str) -> None:
    """Load the models of measuring and embedding into this process, before it measures."""
    load_models(config_json)
    load_encoders(config_json)


SCAN_FRACTION = 0.25
"""Part of the work on a window that the scan is; the rest is the dense pass. Source: docs/performance.md."""

OnSeconds = Callable[[float], None]
"""Called with a number of seconds of footage."""


def measure(
    part: Part, config: MeasureConfig, store: Store, on_progress: OnSeconds = lambda _: None
) -> PartResult:
    """Stages 1 to 5 of every window; a window that fails becomes a failure row, the rest go on.

    A window that fails for want of infrastructure is put off, with nothing of it in the result.

    Args:
        part: the windows.
        config: how to measure.
        store: where arrays are written.
        on_progress: called often, with the seconds of footage of the part that are done.

    Raises:
        RunError, ModelError: nothing can be measured at all (full disk, no weights).
    """
    result = PartResult(part)
    models = load_models(config.model_dump_json())
    before_s = 0.0
    for window in part.windows:
        show = _shifted(on_progress, before_s)
        before_s += window.duration_s
        found = PartResult(part)
        try:
            with local_video(store, window.video, part.stamps.get(window.video.video_id)) as path:
                if part.of:
                    _trace_window(path, window, config, models, store, found, show)
                else:
                    _measure_window(path, window, config, models, store, found, show)
        except (RunError, ModelError):
            raise
        except Exception as error:
            log.debug("window %s", window.key, exc_info=True)
            failure = failure_row("measure", window.key, window.video, error)
            if failure.kind != "video":
                result.put_off[window.key] = failure
                continue
            found.failures.append(failure)
        result.add(found)
    return result


def _shifted(on_progress: OnSeconds, before_s: float) -> OnSeconds:
    return lambda done_s: on_progress(before_s + done_s)


def _measure_window(
    path: Path,
    window: Window,
    config: MeasureConfig,
    models: Models,
    store: Store,
    result: PartResult,
    on_progress: OnSeconds,
) -> None:
    video = window.video
    if not video.has_audio:
        result.outcomes.append(outcome_row(window, "no_audio"))
        return
    if video.hdr:
        result.outcomes.append(outcome_row(window, "hdr"))
        return

    heard = _heard(path, window, models, result)
    segments = heard.segments
    if seconds(segments) < config.gates.skip_video_below_speech_fraction * window.duration_s:
        result.outcomes.append(outcome_row(window, "no_speech", segments))
        return

    with result.clock("scan"):
        seen = scan.scan(
            path,
            video,
            window.start_s,
            window.end_s,
            config.scan.model_copy(update={"longest_edge_px": detection_edge_px(video, config)}),
            models.detector,
            models.shot_network,
            lambda time_s: on_progress(SCAN_FRACTION * (time_s - window.start_s)),
        )
    scanned = ScannedWindow(video, heard.audio, segments, seen)

    candidates = clips.candidates(video, seen.tracks, segments, config.clip)
    rows = [cheap_measures(clip, track, scanned, config) for clip, track in candidates]
    rows = [_with_sound(row, scanned, models, result, result.part.thresholds) for row in rows]
    rows = untraced.mark(rows, result.part.thresholds)
    survivors = [candidate for candidate, row in zip(candidates, rows, strict=True) if row.stopped_by is None]

    traced = _traced(
        path,
        survivors,
        scanned,
        config,
        models,
        result,
        lambda time_s: on_progress(
            SCAN_FRACTION * window.duration_s + (1 - SCAN_FRACTION) * (time_s - window.start_s)
        ),
    )

    def image_of(candidate: clips.Candidate) -> bytes:
        image = seen.images[candidate.track.track]
        return thumbnail(image.rgb, box=image.box)

    spans = [(track.start_s, track.end_s) for track in seen.tracks]
    result.outcomes.append(outcome_row(window, "candidates" if candidates else "no_face", segments, spans))
    result.scenes += seen.scenes
    result.tracks += [track_row(video, track) for track in seen.tracks]
    _keep(candidates, rows, traced, image_of, scanned, models, store, result)


def _trace_window(
    path: Path,
    window: Window,
    config: MeasureConfig,
    models: Models,
    store: Store,
    result: PartResult,
    on_progress: OnSeconds,
) -> None:
    """Trace clips of a window that was measured without: those of a supplement, see `untraced.py`."""
    rows, arrays, images = untraced.read_clips(result.part, window, store)
    heard = _heard(path, window, models, result)
    candidates = [clips.Candidate(row.clip, stored_track(row.clip, arrays[row.clip.clip_id])) for row in rows]
    rows = [_with_sound(row, heard, models, result) for row in rows]
    traced = _traced(
        path, candidates, heard, config, models, result, lambda time_s: on_progress(time_s - window.start_s)
    )
    _keep(candidates, rows, traced, lambda one: images[one.clip.clip_id], heard, models, store, result)


def _heard(path: Path, window: Window, models: Models, result: PartResult) -> HeardWindow:
    with result.clock("vad"):
        audio = Audio(window.start_s, read_audio(path, window.video, window.start_s, window.end_s))
        segments = vad.segments(audio.samples, audio.start_s)
        if models.singing_detector is not None:
            segments = vad.joined(segments, models.singing_detector.singing(audio.samples, audio.start_s))
        return HeardWindow(window.video, audio, segments)


def _with_sound(
    row: ClipMeasures,
    heard: HeardWindow,
    models: Models,
    result: PartResult,
    thresholds: Thresholds | None = None,
) -> ClipMeasures:
    """The row with the quality of its audio, where that is not known and the clip may still be accepted."""
    if row.sound is not None or not untraced.may_be_accepted(row, thresholds):
        return row
    with result.clock("audio quality"):
        samples = clip_audio(heard.audio, row.clip)
        sound = models.audio_scorer.measure(samples, heard.segments, row.clip.start_s)
    return row.model_copy(update={"sound": sound})


def _traced(
    path: Path,
    candidates: Sequence[clips.Candidate],
    heard: HeardWindow,
    config: MeasureConfig,
    models: Models,
    result: PartResult,
    on_frame: OnSeconds,
) -> dict[str, trace.Trace | Exception]:
    with result.clock("trace"):
        return trace.trace(
            path,
            heard.video,
            candidates,
            models.landmarker,
            models.pose_estimator,
            config,
            _speaker_callback(heard, models.face_audio_scorer, result),
            models.picture_scorer,
            models.mouth_classifier,
            on_frame,
        )


def _speaker_callback(
    scanned: HeardWindow, networks: speaker_scorer.SpeakerScorer | None, result: PartResult
) -> trace.ScoreSpeaker | None:
    """Scores a face's crops beside its audio with the speaker networks; None where none is enabled."""
    if networks is None:
        return None

    def score(clip: Clip, crops: Bytes) -> Speaker:
        with result.clock("speaker"):
            return networks.measure(clip, crops, clip_audio(scanned.audio, clip), scanned.segments)

    return score


def _keep(
    candidates: Sequence[clips.Candidate],
    rows: Sequence[ClipMeasures],
    traced: dict[str, trace.Trace | Exception],
    image_of: Callable[[clips.Candidate], bytes],
    scanned: HeardWindow,
    models: Models,
    store: Store,
    result: PartResult,
) -> None:
    """Every candidate into the result: finished, stopped before the dense pass, or failed."""
    for candidate, row in zip(candidates, rows, strict=True):
        clip, track = candidate
        found = traced.get(clip.clip_id)
        if isinstance(found, trace.Trace):
            result.clips.append(_finish(row, found, scanned, models, store, result))
            continue
        if found is not None and kind_of(found) != "video":
            raise found
        if found is not None:
            result.failures.append(failure_row("trace", clip.clip_id, scanned.video, found))
        waits = row.stopped_by == NOT_TRACED.code
        features = track_arrays(clip, track) if waits else {}
        result.clips.append(MeasuredClip(row, image_of(candidate), features=features))


def _finish(
    row: ClipMeasures,
    found: trace.Trace,
    scanned: HeardWindow,
    models: Models,
    store: Store,
    result: PartResult,
) -> MeasuredClip:
    """Score the sync of a traced clip, and write its arrays."""
    clip = row.clip
    samples = clip_audio(scanned.audio, clip)
    with result.clock("sync"):
        mouth = mouth_measures(found.landmarks)
        bands = audio_bands(samples, clip.num_frames, clip.fps)
        spoken = models.phone_recogniser.measure(samples, clip.num_frames, clip.fps)
        scored = contrastive.score(mouth, bands, clip.fps, models.sync_scorer, spoken)
    speaking = mouth_motion.frames_with_speech(scanned.segments, clip.start_s, clip.num_frames, clip.fps)
    still = mouth_motion.still_fraction(mouth_motion.opening(found.landmarks), speaking, clip.fps)
    heard: dict[str, Floats] = {}
    if models.voice_encoder is not None:
        with result.clock("voice"):
            vector = models.voice_encoder.embed(voice.speech_of(samples, scanned.segments, clip.start_s))
        heard = {} if vector is None else {"voice": vector}
    with result.clock("fingerprint"):
        audio_hashes = fingerprint.hash_audio(samples)
    with result.clock("store"):
        name = f"{clip.clip_id}.npz"
        content = npz_bytes(
            landmarks=found.landmarks.points,
            contour=found.lips.contour,
            lip_valid=found.lips.valid,
            joints=found.joints,
            face_rgb=found.face_rgb,
            blendshapes=found.landmarks.blendshapes.clip(0, 1).astype(np.float16),
            face_motion=found.motion.face,
            body_motion=found.motion.body,
        )
        result.files[name] = store.write(f"parts/{result.part.name}/{name}", content)
    traced = found.measures(row.face)
    traced["motion"] = found.motion_row.model_copy(update={"mouth_still_fraction": still})
    return MeasuredClip(
        measures=row.model_copy(update={**traced, "sync": scored}),
        thumbnail=found.thumbnail,
        face=thumbnail(found.face_rgb) if len(found.crops) else b"",
        samples=samples,
        crops=found.crops,
        features={
            "mouth": mouth,
            "bands": bands,
            "phones": spoken,
            "pictures": found.frame_hashes,
            "faces": found.face_boxes,
            "sound": audio_hashes,
            **heard,
        },
    )


def embed(result: PartResult, config: MeasureConfig, store: Store) -> PartResult:
    """Stage 6: speech and identity embeddings of every traced clip, batched over the part."""
    traced = [item for item in result.clips if item.samples is not None]
    if not traced:
        return result
    encoder, embedder = load_encoders(config.model_dump_json())
    with result.clock("embed"):
        lengths = [features_from_frames(c.measures.clip.num_frames, c.measures.clip.fps) for c in traced]
        encoded = encoder.encode([item.samples for item in traced if item.samples is not None], lengths)
        for item, matrix in zip(traced, encoded, strict=True):
            name = f"{item.measures.clip.clip_id}.speech.npz"
            result.files[name] = store.write(f"parts/{result.part.name}/{name}", npz_bytes(speech=matrix))
        # What has been embedded need not travel any further.
        result.clips = [
            replace(_identified(item, embedder), samples=None, crops=None) for item in result.clips
        ]
    return result


def _identified(item: MeasuredClip, embedder: identity.Embedder | None) -> MeasuredClip:
    if embedder is None or item.crops is None or not len(item.crops):
        return item
    vector, consistency = identity.summarise(embedder.embed(item.crops))
    who = Identity(identity_model=embedder.name, identity_consistency=consistency)
    measures = item.measures.model_copy(update={"identity": who})
    return replace(item, measures=measures, features={**item.features, "identity": vector})


def commit(result: PartResult, store: Store) -> tuple[Failure, ...]:
    """Stage 7: write the part's tables, and `part.json` last.

    Returns:
        Failures of the windows that are put off. They are not committed; where no other window is left,
        neither is the part.
    """
    # Noted first: a part that is committed without a window must have the note that the window is left.
    put_off = tuple(
        result.put_off[window.key]
        if result.part.of  # its clips still wait for their traces
        else attempts.put_off(result.part, window, result.put_off[window.key], store)
        for window in result.part.windows
        if window.key in result.put_off
    )
    windows = tuple(window for window in result.part.windows if window.key not in result.put_off)
    if not windows:
        return put_off
    if result.part.of:
        windows = ()  # the part that it supplements has them
    folder = f"parts/{result.part.name}"
    files = dict(result.files)
    rows: dict[str, tuple[type[Record], Sequence[Record]]] = {
        "windows.parquet": (Window, windows),
        "outcomes.parquet": (Outcome, result.outcomes),
        "scenes.parquet": (Scene, result.scenes),
        "tracks.parquet": (Track, result.tracks),
        "clips.parquet": (ClipMeasures, [item.measures for item in result.clips]),
        "failures.parquet": (Failure, [store.named(failure) for failure in result.failures]),
    }
    for name, (model, records) in rows.items():
        files[name] = tables.write(store, f"{folder}/{name}", model, records)
    named = {item.measures.clip.clip_id: item for item in result.clips}
    thumbnails = {key: np.frombuffer(item.thumbnail, np.uint8) for key, item in named.items()}
    thumbnails |= {
        f"{key}/face": np.frombuffer(item.face, np.uint8) for key, item in named.items() if item.face
    }
    for name, content in small_arrays.files({key: item.features for key, item in named.items()}).items():
        files[name] = store.write(f"{folder}/{name}", content)
    files["thumbnails.npz"] = store.write(f"{folder}/thumbnails.npz", npz_bytes(**thumbnails))
    for path in store.list(folder):
        if Path(path).name not in files:  # left by a run that was killed
            store.delete(path)
    marker = {
        "name": result.part.name,
        "seconds": sum(window.duration_s for window in windows),
        "clips": len(result.clips),
        "failures": len(result.failures),
        "cpu_s": {stage: round(spent_s, 3) for stage, spent_s in sorted(result.cpu_s.items())},
        "files": dict(sorted(files.items())),
    }
    store.write(f"{folder}/part.json", json.dumps(marker, indent=1).encode())
    return put_off


def give_up(
    part: Part, error: BaseException, store: Store, kind: FailureKind = "video"
) -> tuple[Failure, ...]:
    """Settle a part whose task cannot be finished.

    Args:
        part: the part.
        error: what its task died of.
        store: the data set.
        kind: `video` commits every window as failed; any other kind puts them all off.

    Returns:
        Failures of the windows that are put off.
    """
    result = PartResult(part)
    failures = [failure_row("measure", w.key, w.video, error) for w in part.windows]
    failures = [failure.model_copy(update={"kind": kind}) for failure in failures]
    if kind == "video" and part.of:
        for window in part.windows:
            rows, _, images = untraced.read_clips(part, window, store)
            result.clips += [MeasuredClip(row, images[row.clip.clip_id]) for row in rows]
            result.failures += [failure_row("trace", row.clip.clip_id, window.video, error) for row in rows]
    elif kind == "video":
        result.failures = failures
    else:
        result.put_off = {failure.key: failure for failure in failures}
    return commit(result, store)
