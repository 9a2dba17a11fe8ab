"""Fits the classifier of covered mouths that ships as curation/face/covered_mouth.onnx.

    python -m benchmarks.fit_covered_mouth FOLDER...        # videos of speakers whose mouths are clear

Every second frame gives a crop of the mouth. Covers of `benchmarks.covers` are painted over most crops, and
beside the lips of some. One file in four, by the order of names, is left out of the fit and measured. The
same files, packages and processor give the same weights.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import onnx
import torch
import typer
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from benchmarks.covers import PAINTERS, Mouth, beard, cover
from talkforge.curation import clips, media, scan
from talkforge.curation.face import covered, detect, landmarks
from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.media import probe
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Input

log = logging.getLogger(__name__)

WIDE_PX = 80
"""Edge of the crops before they are turned, shifted and scaled to `covered.CROP_PX`."""

WIDE = WIDE_PX / covered.CROP_PX

PER_FILE = 90
"""Most crops of one file: people count for more than frames."""

STEPS, BATCH = 800, 64
CHANNELS = (16, 32, 48, 64)

HIDDEN_FROM, CLEAR_TO = 0.55, 0.12
"""A mouth is covered from this fraction of the lips' area on, and clear up to that one. Crops between are
left out."""

Rng = np.random.Generator


def crops_of(path: Path) -> list[tuple[Bytes, Mouth]]:
    """Wide crops of the mouths of a video, uint8 [80, 80, 3], with the place of the lips in each."""
    config = MeasureConfig.model_validate({"clip": {"crop": "none"}})  # as the fit that ships was made
    detector = detect.load_detector(config.scan)
    landmarker = landmarks.FaceLandmarker(registry.weights("face_landmarker"))
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    seen = scan.scan(path, video, video.start_s, video.end_s, config.scan, detector)
    found = []
    for clip, track in clips.candidates(video, seen.tracks, (), config.clip):
        tracer, own = landmarks.LandmarkTracer(landmarker, track, clip, video), {}
        for frame in media.read_frames(path, video, clip.start_s, clip.end_s):
            shown = media.clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
            if not shown or shown[0] % 2:
                continue
            rgb = frame.of_clip(clip)
            points = tracer.push(shown, rgb)
            if points is not None:
                own[shown[0]] = wide_crop(rgb, points)
        yaw_deg = np.abs(tracer.finish().angles_deg[:, 0])
        found += [crop for k, crop in own.items() if yaw_deg[k] <= covered.MAX_YAW_DEG]
    return found[:: max(1, len(found) // PER_FILE)]


def wide_crop(rgb: Bytes, points: Floats) -> tuple[Bytes, Mouth]:
    """The surroundings of a mouth, and where it is in them."""
    square = covered.mouth_square(points)
    wide = covered.cut(rgb, covered.Square(square.x, square.y, square.half * WIDE), WIDE_PX)
    scale = WIDE_PX / (2 * square.half * WIDE)
    placed = (points[list(OUTER_LIPS), :2] - np.array([square.x, square.y])) * scale + (WIDE_PX - 1) / 2
    lips: Floats = placed.astype(np.float32)
    middle = (lips.min(0) + lips.max(0)) / 2
    return wide, Mouth(float(middle[0]), float(middle[1]), covered.CROP_PX / 1.9, lips)


def example(crop: tuple[Bytes, Mouth], others: list[tuple[Bytes, Mouth]], rng: Rng) -> tuple[Bytes, bool]:
    """A picture as the network sees it, uint8 [48, 48, 3], and whether its mouth is covered."""
    wide, mouth = crop
    while True:
        rgb, hidden = wide, 0.0
        if rng.random() < 0.25:
            rgb = beard(rgb, mouth, rng)
        if rng.random() < 0.65:
            kind = str(rng.choice(list(PAINTERS)))
            beside = rng.random() < 0.3
            reach = rng.uniform(0.7, 1.4) if beside else abs(rng.normal(0, 0.2))
            turn = rng.uniform(0, 2 * np.pi)
            rgb, hidden = cover(rgb, mouth, kind, rng, reach * np.cos(turn), reach * np.sin(turn))
        elif rng.random() < 0.15:
            rgb, hidden = pieced(rgb, mouth, others[rng.integers(len(others))][0], rng)
        if hidden >= HIDDEN_FROM or hidden <= CLEAR_TO:
            return harmed(warped(rgb, rng), rng), hidden >= HIDDEN_FROM


def pieced(rgb: Bytes, mouth: Mouth, other: Bytes, rng: Rng) -> tuple[Bytes, float]:
    """With a piece of somebody's cheek over the mouth: the corner of another crop, enlarged."""
    edge = WIDE_PX // 4
    corner = other[:edge, :edge] if rng.random() < 0.5 else other[:edge, -edge:]
    piece = cv2.resize(corner, (WIDE_PX, WIDE_PX), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((WIDE_PX, WIDE_PX), np.float32)
    half = (round(mouth.width * rng.uniform(0.6, 0.9)), round(mouth.width * rng.uniform(0.4, 0.7)))
    cv2.ellipse(mask, (round(mouth.x), round(mouth.y)), half, 0, 0, 360, 1, -1)
    alpha = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 3))[..., None]
    return np.asarray(alpha * piece + (1 - alpha) * rgb, np.uint8), 1.0


def warped(rgb: Bytes, rng: Rng) -> Bytes:
    """Turned, scaled, shifted, mirrored, at `covered.CROP_PX`."""
    scale, middle = rng.uniform(0.85, 1.2), (WIDE_PX - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), float(rng.normal(0, 10)), float(scale))
    matrix[:, 2] += (covered.CROP_PX - WIDE_PX) / 2 + rng.normal(0, 1.5, 2)
    size = (covered.CROP_PX, covered.CROP_PX)
    out = cv2.warpAffine(rgb, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out[:, ::-1] if rng.random() < 0.5 else out, np.uint8)


def harmed(rgb: Bytes, rng: Rng) -> Bytes:
    """Another light and colour, blurred, noisy, grey, compressed: each sometimes."""
    out = 255 * (rgb / 255.0) ** np.exp(rng.normal(0, 0.35))
    out = (out - 128) * np.exp(rng.normal(0, 0.2)) + 128 + rng.normal(0, 18) + rng.normal(0, 8, 3)
    if rng.random() < 0.12:
        out = np.repeat(out.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.3:  # smaller faces have less detail
        small = int(rng.integers(14, 40))
        out = cv2.resize(cv2.resize(out, (small, small), interpolation=cv2.INTER_AREA), rgb.shape[:2])
    if rng.random() < 0.2:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.5))
    if rng.random() < 0.3:
        out = out + rng.normal(0, rng.uniform(1, 8), out.shape)
    pixels = np.clip(out, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.asarray(pixels, np.uint8)


class Network(nn.Module):  # type: ignore[misc]
    """Four convolutions, halved after each of the first three, and one number: about 47,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        ins = (3, *CHANNELS[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(ins, CHANNELS, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in CHANNELS)
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(CHANNELS[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n] of pictures float32 [n, 3, 48, 48] in 0..1."""
        for k, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = torch.relu(norm(convolution(x)))
            if k < len(CHANNELS) - 1:
                x = nn.functional.avg_pool2d(x, 2)
        logits: Tensor = self.last(self.drop(x.mean((2, 3))))[:, 0]
        return logits


def batch_of(crops: list[list[tuple[Bytes, Mouth]]], count: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """Examples, every file as often as any other: float32 [n, 3, 48, 48] and [n]."""
    every = [crop for own in crops for crop in own]
    made = []
    for _ in range(count):
        own = crops[rng.integers(len(crops))]
        made.append(example(own[rng.integers(len(own))], every, rng))
    pictures = np.stack([rgb for rgb, _ in made])
    return torch.from_numpy(covered.network_input(pictures)), torch.tensor([float(c) for _, c in made])


def fit(crops: list[list[tuple[Bytes, Mouth]]], seed: int = 0) -> Network:
    """The network, fitted on the crops of some files."""
    torch.manual_seed(seed)
    rng, network = np.random.default_rng(seed), Network()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for step in range(STEPS):
        pictures, truth = batch_of(crops, BATCH, rng)
        loss = nn.functional.binary_cross_entropy_with_logits(network(pictures), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %d: loss %.4f", step, loss.item())
    network.eval()
    return network


def to_onnx(network: Network) -> onnx.ModelProto:
    """The network with its norms folded into the convolutions. Input `pictures`, output `logits`."""
    weights, nodes, last = [], [], "pictures"
    for k, (convolution, norm) in enumerate(zip(network.convolutions, network.norms, strict=True)):
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
        kernel = (convolution.weight * scale[:, None, None, None]).detach().numpy()
        bias = ((convolution.bias - norm.running_mean) * scale + norm.bias).detach().numpy()
        weights += [numpy_helper.from_array(kernel, f"w{k}"), numpy_helper.from_array(bias, f"b{k}")]
        nodes.append(helper.make_node("Conv", [last, f"w{k}", f"b{k}"], [f"c{k}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"]))
        last = f"r{k}"
        if k < len(CHANNELS) - 1:
            nodes.append(
                helper.make_node("AveragePool", [last], [f"p{k}"], kernel_shape=[2, 2], strides=[2, 2])
            )
            last = f"p{k}"
    final, offset = network.last.weight.detach().numpy(), network.last.bias.detach().numpy()
    weights += [numpy_helper.from_array(final, "w"), numpy_helper.from_array(offset, "b")]
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], transB=1),
    ]
    size: list[str | int | None] = ["n", 3, covered.CROP_PX, covered.CROP_PX]
    graph = helper.make_graph(
        nodes,
        "covered_mouth",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="talkforge")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of videos, or videos.")],
    out: Annotated[Path, typer.Option(help="Where the weights are written.")] = covered.WEIGHTS,
) -> None:
    """Fit, measure on the files left out, fit on all, and write."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    files = sorted(file for f in folders for file in (f.iterdir() if f.is_dir() else [f]))
    crops = {}
    for file in files:
        try:
            crops[file.name] = crops_of(file)
        except MediaError as error:
            log.info("%s", error)
    people = [own for own in crops.values() if own]
    held = [own for k, own in enumerate(people) if k % 4 == 3]
    network = fit([own for k, own in enumerate(people) if k % 4 != 3])
    rng = np.random.default_rng(1)
    pictures, truth = batch_of(held, 3000, rng)
    with torch.no_grad():
        scores = network(pictures).numpy()
    for least in (-2.0, -1.0, 0.0, 1.0, 2.0):
        found, lost = (scores[truth == 1] > least).mean(), (scores[truth == 0] > least).mean()
        log.info("%d files left out: above %+.1f are %.3f of the covered, %.3f of the clear crops",
                 len(held), least, found, lost)  # fmt: skip
    onnx.save(to_onnx(fit(people)), str(out))


if __name__ == "__main__":
    typer.run(main)
