"""Rows of `benchmarks.models` for what is seen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from benchmarks import cuts, duplicates
from benchmarks.material import CONFIG, GESTURES, NOBODY, SILENT, TALKING, File, Material, Row, Shot, Spent
from talkforge.curation import media, trace
from talkforge.curation.body import pose
from talkforge.curation.body.joints import JOINTS
from talkforge.curation.face import detect, identity, landmarks
from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.picture.scorer import HANDS_EVERY_S, WEIGHTS, PictureScorer, PictureTracer
from talkforge.curation.shots import network as shots
from talkforge.curation.shots.transnet import TransNet
from talkforge.curation.weights import registry
from talkforge.pipeline.needs import BODY_MODELS
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import FrameQualityConfig, IdentityConfig
from talkforge.schemas.records import FrameQuality

BLUR_PX = 2.0
"""Deviation of the blur that BRISQUE should notice, px of the clip."""

COPIES = ("encoded again, crf 35", "begins 0.37 s later", "noise at 20 dB")
"""Of `duplicates.CHANGES`, the mildest and the two that are missed most."""


def scenes(material: Material) -> Iterator[Row]:
    names = (*cuts.STUDIO, *cuts.SINGLES, *cuts.NATIVE)
    loaded = {name: cuts.loaded(material.folder / name) for name in names}
    detectors = {"adaptive + faces": cuts.by_cut_detector(detect.load_detector(CONFIG.scan))}
    if registry.present("transnetv2") is not None:
        network = TransNet(registry.weights("transnetv2"))
        detectors["transnetv2"] = lambda frames: [
            found.first
            for found in shots.transitions(network.boundaries(np.stack([*map(shots.network_frame, frames)])))
        ]
    for name, find in detectors.items():
        spent, score = Spent(), cuts.Score()
        for footage in itertools.chain(cuts.one_studio(loaded), cuts.native(loaded)):
            length_s = len(footage.frames) / cuts.FPS
            score.add(cuts.scored(footage, spent.on(length_s, functools.partial(find, footage.frames))))
        figures = (
            f"{score.near} of {score.true} hard cuts within 2 frames, {score.found - score.near} false: "
            f"F1 {score.f1(score.near):.3f} (all kinds of cuts: scenes.md)"
        )
        yield Row((name,), figures, spent.rate)


def detection(material: Material) -> Iterator[Row]:
    alone = [material.files[name].seen.detections for name in (*TALKING, SILENT)]
    counts = [len(sample.boxes) for samples in alone for sample in samples]
    nobody = [len(sample.boxes) for sample in material.files[NOBODY].seen.detections]
    figures = (
        f"exactly the one face in {counts.count(1)} of {len(counts)} frames; "
        f"none in {nobody.count(0)} of {len(nobody)} frames of an animation"
    )
    yield Row(("centerface",), f"{figures} (cost with decoding and scenes)", material.scanning.rate)


def mesh(material: Material) -> Iterator[Row]:
    traced = [*material.talking, *material.files[SILENT].traced]
    seen = np.concatenate([np.asarray(shot.found.landmarks.seen) for shot in traced])
    lips = np.concatenate([shot.found.lips.valid for shot in traced])
    figures = (
        f"face in {seen.mean():.1%} of {seen.size} frames, lips measured in {(lips == 2).mean():.1%} "
        "(cost with decoding, lips and crops)"
    )
    yield Row(("face_landmarker", "outer lips"), figures, material.tracing.rate)


def body(material: Material) -> Iterator[Row]:
    file = material.files[GESTURES]
    landmarker = landmarks.FaceLandmarker(registry.weights("face_landmarker"))
    pair = [JOINTS.index("left_shoulder"), JOINTS.index("right_shoulder")]
    without_s = 0.0
    for choice, names in reversed(BODY_MODELS.items()):  # "none" first: the others cost what they add
        if any(registry.present(name) is None for name in names):
            continue
        spent, estimator = Spent(), pose.load_estimator(CONFIG.motion.model_copy(update={"body": choice}))
        traced = spent.on(
            sum(shot.length_s for shot in file.traced),
            functools.partial(
                trace.trace, file.path, file.video, file.candidates, landmarker, estimator, CONFIG
            ),
        )
        if not names:
            without_s = spent.rate
            continue
        joints = [found.joints for found in traced.values() if isinstance(found, trace.Trace)]
        shoulders = np.isfinite(np.concatenate(joints)[:, pair, 0]).all(axis=1)
        figures = f"both shoulders in {shoulders.mean():.1%} of the {shoulders.size} frames of {GESTURES}"
        yield Row(names, figures, max(spent.rate - without_s, 0.0))


def who_it_is(material: Material) -> Iterator[Row]:
    for name in identity.EMBEDDERS:
        if registry.present(name) is None:
            continue
        embedder, spent = identity.load_embedder(IdentityConfig(model=name)), Spent()
        assert embedder is not None
        people: dict[str, list[Floats]] = {}
        for shot in material.talking:
            vectors = spent.on(shot.length_s, functools.partial(embedder.embed, shot.found.crops))
            half = len(vectors) // 2
            parts = (identity.summarise(vectors[:half])[0], identity.summarise(vectors[half:])[0])
            people.setdefault(shot.clip.video_id, []).extend(parts)
        same = [float(a @ b) for own in people.values() for a, b in itertools.combinations(own, 2)]
        other = [
            float(a @ b)
            for one, two in itertools.combinations(people.values(), 2)
            for a, b in itertools.product(one, two)
        ]
        figures = (
            f"{len(people)} people: cosines of one person {min(same):.2f} to {max(same):.2f}, of two "
            f"{min(other):.2f} to {max(other):.2f}"
        )
        yield Row((name,), figures, spent.rate)


def image_quality(material: Material) -> Iterator[Row]:
    hands = hand_held(material.files[GESTURES])
    harms = {"brisque": blurred, "text": titled, "hands": hands, "nsfw": blurred}
    asked = [
        name for name in harms if all(registry.present(weights) is not None for weights in WEIGHTS[name])
    ]
    meters = {name: PictureScorer(FrameQualityConfig().model_copy(update={name: True})) for name in asked}
    spent = {name: Spent() for name in asked}
    found: dict[str, list[tuple[FrameQuality, FrameQuality]]] = {name: [] for name in asked}
    for file, shot in material.traced:
        pairs = {name: [PictureTracer(meters[name], shot.clip) for _ in range(2)] for name in asked}
        for shown, rgb, points in looked_at(file, shot):
            for name, (clean, harmed) in pairs.items():
                spent[name].on(0.0, functools.partial(clean.push, shown, rgb, points))
                harmed.push(shown, rgb if points is None else harms[name](rgb, points), points)
        for name, (clean, harmed) in pairs.items():
            spent[name].footage_s += shot.length_s
            found[name].append((clean.finish(), harmed.finish()))
    for name in asked:
        yield Row(WEIGHTS[name], PICTURE_FIGURES[name](found[name]), spent[name].rate)


def brisque_figures(pairs: list[tuple[FrameQuality, FrameQuality]]) -> str:
    scores = [(a.face_brisque, b.face_brisque) for a, b in pairs]
    both = [(a, b) for a, b in scores if a is not None and b is not None]
    return (
        f"faces {min(a for a, _ in both):.0f} to {max(a for a, _ in both):.0f}; blurred by {BLUR_PX:g} px "
        f"{min(b for _, b in both):.0f} to {max(b for _, b in both):.0f}, higher in "
        f"{sum(b > a for a, b in both)} of {len(both)} shots"
    )


def text_figures(pairs: list[tuple[FrameQuality, FrameQuality]]) -> str:
    clean, harmed = (np.mean([p.mouth_text_fraction for p in side]) for side in zip(*pairs, strict=True))
    anywhere = sum((a.text_fraction or 0) > 0 for a, _ in pairs)
    return (
        f"over the mouth in {clean:.0%} of frames as they are, in {harmed:.0%} with a line drawn there; "
        f"anywhere in {anywhere} of {len(pairs)} shots as they are"
    )


def hand_figures(pairs: list[tuple[FrameQuality, FrameQuality]]) -> str:
    clean, harmed = (np.mean([p.mouth_hand_fraction for p in side]) for side in zip(*pairs, strict=True))
    return (
        f"over the mouth in {clean:.0%} of frames as they are, in {harmed:.0%} with a hand pasted there, "
        "always the same one"
    )


def nsfw_figures(pairs: list[tuple[FrameQuality, FrameQuality]]) -> str:
    clean, harmed = (max(p.nsfw_probability or 0.0 for p in side) for side in zip(*pairs, strict=True))
    return f"at most {clean:.2f} in {len(pairs)} shots of speakers, {harmed:.2f} with blurred faces"


PICTURE_FIGURES = {
    "brisque": brisque_figures, "text": text_figures, "hands": hand_figures, "nsfw": nsfw_figures
}  # fmt: skip


def looked_at(file: File, shot: Shot) -> Iterator[tuple[range, Bytes, Floats | None]]:
    """Of a shot, the frames that the slowest of the three measures looks at, with their landmarks."""
    clip, step = shot.clip, round(HANDS_EVERY_S * shot.clip.fps)
    for shot_picture in media.read_frames(file.path, file.video, clip.start_s, clip.end_s):
        shown = media.clip_indices(shot_picture, clip.start_s, clip.fps, clip.num_frames)
        if any(k % step == 0 for k in shown):
            points = shot.found.landmarks.points[shown[0]]
            seen = bool(np.isfinite(points[0, 0]))
            yield shown, shot_picture.of_clip(clip), points if seen else None


def blurred(rgb: Bytes, _: Floats) -> Bytes:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), BLUR_PX), np.uint8)


def titled(rgb: Bytes, points: Floats) -> Bytes:
    """With a line of text over the mouth, twice as wide as it."""
    out, lips = rgb.copy(), points[list(OUTER_LIPS), :2]
    words, (x, y), wide_px = "we went home", lips.mean(0), 2 * float(np.ptp(lips[:, 0]))
    (width_px, height_px), _ = cv2.getTextSize(words, 0, 1.0, 1)
    scale = wide_px / width_px
    corner = (round(float(x) - wide_px / 2), round(float(y) + scale * height_px / 2))
    for level, thick_px in ((0, 6), (255, 2)):
        cv2.putText(out, words, corner, 0, scale, (level,) * 3, max(1, round(thick_px * scale)), cv2.LINE_AA)
    return out


def hand_held(file: File) -> Callable[[Bytes, Floats], Bytes]:
    """What holds an open hand, cut out of GESTURES, over a mouth: what is redder there than the shirt."""
    hand = next(media.read_frames(file.path, file.video, 4.0, 4.1)).rgb(576, 1024)[498:625, 352:466]
    red = (cv2.cvtColor(hand, cv2.COLOR_RGB2YCrCb)[..., 1] > 138).astype(np.uint8)
    mask = cv2.morphologyEx(red, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)).astype(np.float32)

    def hold(rgb: Bytes, points: Floats) -> Bytes:
        size_px = 0.8 * float(np.ptp(points[:, 1]))
        scale = size_px / max(mask.shape)
        x, y = points[list(OUTER_LIPS), :2].mean(0) - scale * np.array(mask.shape[::-1]) / 2
        place, size = np.array([[scale, 0, x], [0, scale, y]]), rgb.shape[1::-1]
        alpha = cv2.warpAffine(mask, place, size)[..., None]
        return np.asarray(alpha * cv2.warpAffine(hand, place, size) + (1 - alpha) * rgb, np.uint8)

    return hold


def copies(material: Material) -> Iterator[Row]:
    spent, originals = duplicates.Spent(), duplicates.originals(material.folder)
    first = [(name, duplicates.printed(span, spent)) for name, span in originals.items()]
    counts = [duplicates.scored(originals, first, duplicates.CHANGES[name], spent) for name in COPIES]
    wrong = sum(false for _, false in counts)
    each = ", ".join(f"{name}: {right}" for name, (right, _) in zip(COPIES, counts, strict=True))
    figures = f"copies found, of {len(originals)} spans of 3 s: {each}; {wrong} wrong (more in duplicates.md)"
    cost = (spent.cpu_s["pictures"] + spent.cpu_s["sound"]) / spent.footage_s
    yield Row(("pHash", "audio hashes"), figures, cost, "Apache-2.0 (OpenCV) / part of Talkforge")
