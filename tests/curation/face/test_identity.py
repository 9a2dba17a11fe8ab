"""Alignment against known geometry; embeddings against real people."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import cv2
import mediapipe as mp
import numpy as np
import onnx
import pytest
from mediapipe.tasks.python import BaseOptions, vision

from talkforge.curation import media
from talkforge.curation.face import identity
from talkforge.curation.media import probe
from talkforge.curation.weights import registry
from talkforge.schemas import extras
from talkforge.schemas.config import IdentityConfig, ShardConfig
from talkforge.schemas.errors import MissingExtraError, ModelError
from talkforge.schemas.records import Input
from tests.conftest import Packaged, RealClip

FRAMES_PER_CLIP = 6

# A square in the upright picture in which the landmarker finds the face by itself: x, y, edge in pixels.
GRID = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg")
GRID_SQUARE = (60, 44, 244)
OTHERS = {
    "st_katie.mp4": (0, 0, 512),
    "vr_1.mp4": (100, 0, 500),
}

# --------------------------------------------------------------------------- alignment


def gradient(width_px: int, height_px: int) -> np.ndarray:
    """A picture whose red and green tell the place: 255 at the far edge."""
    x, y = np.meshgrid(np.linspace(0, 255, width_px), np.linspace(0, 255, height_px))
    return np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8)


def moved(scale: float, angle_deg: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(angle_deg)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return identity.TEMPLATE @ turn.T + np.array(shift)


def test_similarity_recovers_scale_turn_and_shift() -> None:
    found = identity.similarity_transform(identity.TEMPLATE, moved(2.5, 30.0, (7.0, -4.0)))
    cos, sin = 2.5 * np.cos(np.pi / 6), 2.5 * np.sin(np.pi / 6)
    np.testing.assert_allclose(found, [[cos, -sin, 7.0], [sin, cos, -4.0]], atol=1e-9)


def test_similarity_is_the_least_squares_one() -> None:
    target = moved(1.3, -20.0, (3.0, 5.0)) + np.random.default_rng(1).normal(0, 2.0, (5, 2))
    found = identity.similarity_transform(identity.TEMPLATE, target)

    def error(matrix: np.ndarray) -> float:
        return float(((identity.TEMPLATE @ matrix[:, :2].T + matrix[:, 2] - target) ** 2).sum())

    for a, b, x, y in np.vstack([np.eye(4), -np.eye(4)]) * 1e-3:
        assert error(found + np.array([[a, -b, x], [b, a, y]])) > error(found)


def test_points_at_the_template_give_an_unchanged_crop() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (150, 140, 3), dtype=np.uint8)
    np.testing.assert_array_equal(identity.align(rgb, moved(1.0, 0.0, (9.0, 21.0))), rgb[21:133, 9:121])


@pytest.mark.parametrize("angle_deg", [0.0, 35.0])
@pytest.mark.parametrize("scale", [0.6, 1.0, 1.9, 2.0, 3.7])
def test_every_crop_pixel_comes_from_the_right_frame_pixel(scale: float, angle_deg: float) -> None:
    rgb = gradient(700, 800)
    five = moved(scale, angle_deg, (300.0, 250.0))
    crop = identity.align(rgb, five.astype(np.float32))
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.uint8
    matrix = identity.similarity_transform(identity.TEMPLATE, five)
    x, y = np.meshgrid(np.arange(112), np.arange(112))
    place = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T
    inside = ((place >= 4) & (place <= [695, 795])).all(axis=-1)
    expected = place / [699, 799] * 255
    assert inside.mean() > 0.9
    assert np.abs(crop[..., :2].astype(float) - expected)[inside].max() <= 1.1


def test_a_large_face_is_averaged_not_sampled() -> None:
    board = np.indices((900, 900)).sum(0) % 2 * 255
    rgb = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    crop = identity.align(rgb, moved(6.0, 0.0, (100.0, 100.0)))
    assert np.abs(crop.astype(int) - 128).max() <= 2


def test_the_crop_is_black_beyond_the_frame() -> None:
    crop = identity.align(np.full((300, 300, 3), 200, np.uint8), moved(4.0, 0.0, (-200.0, -200.0)))
    assert (crop[:48, :48] == 0).all()
    assert (crop[52:110, 52:110] == 200).all()


def test_five_of_the_478_landmarks_are_used() -> None:
    rgb = gradient(300, 300)
    five = moved(1.5, 10.0, (50.0, 60.0)).astype(np.float32)
    points = np.zeros((478, 3), np.float32)
    points[list(identity.FIVE_POINTS), :2] = five
    np.testing.assert_array_equal(identity.align(rgb, points), identity.align(rgb, five))


@pytest.mark.parametrize("points", [np.full((478, 3), np.nan), np.ones((5, 2))])
def test_points_that_are_no_face_are_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected five different points"):
        identity.align(gradient(200, 200), points.astype(np.float32))


def test_other_numbers_of_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points: expected shape \[5, 2\], found \[68, 2\]"):
        identity.align(gradient(200, 200), np.zeros((68, 2), np.float32))


# --------------------------------------------------------------------------- summary


def test_summary_of_one_and_of_several() -> None:
    vectors = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]], np.float32)
    median, consistency = identity.summarise(vectors)
    np.testing.assert_allclose(median, [1.0, 0.0, 0.0], atol=1e-6)
    assert consistency == 0.6
    median, consistency = identity.summarise(vectors[2:])
    np.testing.assert_allclose(median, [0.6, 0.8, 0.0], atol=1e-6)
    assert consistency == 1.0
    assert median.dtype == np.float32


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one, found none"):
        identity.summarise(np.zeros((0, 128), np.float32))


# --------------------------------------------------------------------------- embedders


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TALKFORGE_MODELS", raising=False)
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))


@pytest.mark.usefixtures("no_weights")
def test_without_weights_auto_finds_none_and_a_name_says_what_is_missing() -> None:
    assert identity.load_embedder(IdentityConfig()) is None
    assert identity.load_embedder(IdentityConfig(model="none")) is None
    with pytest.raises(ModelError, match=r"w600k_r50: no package carries w600k_r50\.onnx: put it into"):
        identity.load_embedder(IdentityConfig(model="w600k_r50"))


def test_a_model_that_embeds_no_faces_is_refused() -> None:
    with pytest.raises(ModelError, match="expected one of auto, none, w600k_r50, mobilefacenet, dlib"):
        identity.load_embedder(IdentityConfig(model="centerface"))


def tiny_onnx(path: Path, input_shape: list[int | str], output_shape: list[int | str]) -> Path:
    """A model that averages the picture, or reshapes it."""
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        onnx.helper.make_node("Flatten", ["m"], ["y"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "tiny", [value("x", kind, input_shape)], [value("y", kind, output_shape)]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_input_is_rgb_scaled_to_minus_one_to_one_and_output_has_unit_length(tmp_path: Path) -> None:
    embedder = identity.ArcFace("tiny", tiny_onnx(tmp_path / "a.onnx", [1, 3, 112, 112], [1, 3]), "")
    assert (embedder.name, embedder.dim) == ("tiny", 3)
    crops = np.zeros((2, 112, 112, 3), np.uint8)
    crops[0, ...] = [255, 0, 0]
    crops[1, ...] = [255, 255, 0]
    vectors = embedder.embed(crops)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors * np.sqrt(3), [[1, -1, -1], [1, 1, -1]], atol=1e-5)
    assert embedder.embed(crops[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("on_gpu", "takes", "batches"),
    [(True, "n", [64, 6]), (True, 1, [1] * 70), (False, "n", [1] * 70), (False, 1, [1] * 70)],
)
def test_a_gpu_takes_many_crops_in_a_call_where_the_model_does(
    on_gpu: bool, takes: str | int, batches: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "runs_on_gpu", lambda _: on_gpu)
    path = tiny_onnx(tmp_path / "a.onnx", [takes, 3, 112, 112], [takes, 3])
    embedder, alone = identity.ArcFace("tiny", path, ""), identity.ArcFace("tiny", path, "")
    crops = np.random.default_rng(5).integers(0, 256, (70, 112, 112, 3), np.uint8)
    sizes, one = [], embedder._vectors
    monkeypatch.setattr(embedder, "_vectors", lambda given: sizes.append(len(given)) or one(given))
    together = embedder.embed(crops)
    assert sizes == batches
    assert together.shape == (70, 3)
    np.testing.assert_allclose(together, np.concatenate([alone.embed(c[None]) for c in crops]), atol=1e-5)


def test_other_inputs_and_files_are_refused(tmp_path: Path) -> None:
    wide = tiny_onnx(tmp_path / "wide.onnx", [1, 3, 160, 160], [1, 3])
    with pytest.raises(ModelError, match=r"expected input \[1, 3, 112, 112\], found \[1, 3, 160, 160\]"):
        identity.ArcFace("wide", wide, "")
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(ModelError, match="is not an ONNX model that runs") as caught:
        identity.ArcFace("text", text, "")
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- dlib


def test_the_threshold_is_the_embedders_own_unless_it_is_configured() -> None:
    default = ShardConfig()
    assert set(identity.SAME_PERSON_SIMILARITY) == set(identity.EMBEDDERS)
    assert (
        identity.same_person_threshold(default, "mobilefacenet")
        == identity.same_person_threshold(default, None)
        == 0.5
    )
    assert identity.same_person_threshold(default, "dlib") == pytest.approx(
        1 - 0.5**2 / (2 * 1.45**2), abs=0.002
    )
    assert identity.same_person_threshold(ShardConfig(same_person=0.7), "dlib") == 0.7


def test_a_chip_is_what_dlib_itself_would_cut() -> None:
    """Out of a crop in which the points lie where `DLIB_POINTS` has them."""
    dlib = pytest.importorskip("dlib")
    crop = gradient(112, 112)
    # Enlarged, because dlib's points are whole numbers; pixel x of the crop is centred at 11 x + 5.
    points = [dlib.point(*(round(11 * float(v) + 5) for v in point)) for point in identity.DLIB_POINTS]
    large = cv2.resize(crop, (1232, 1232), interpolation=cv2.INTER_LINEAR)
    face = dlib.full_object_detection(dlib.rectangle(0, 0, 1231, 1231), points)
    expected = dlib.get_face_chip(large, face, identity.DLIB_CHIP_PX, 0.25)
    (found,) = identity.dlib_chips(crop[None])
    assert found.shape == (150, 150, 3) and found.dtype == np.uint8
    inside = (slice(4, 130), slice(4, 146))  # dlib leaves the rim of a picture black
    away_px = np.abs(found[inside].astype(float) - expected[inside])[..., :2] / 255 * 111
    assert away_px.max() < 1.2, "dlib halves pictures on its way, and is no more exact than this"
    assert identity.dlib_chips(crop[None][:0]).shape == (0, 150, 150, 3)


def test_without_dlib_auto_passes_it_over_and_its_name_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("dlib")
    path = tmp_path / "weights.dat"
    path.write_bytes(b"no network")
    monkeypatch.setattr(registry, "present", lambda name: path if name == "dlib" else None)
    monkeypatch.setattr(registry, "weights", lambda _: path)
    with pytest.raises(ModelError, match=r"^dlib: .*weights\.dat: is no face network of dlib: [^\n]*$"):
        identity.load_embedder(IdentityConfig())
    monkeypatch.setitem(extras.PACKAGES, "dlib", ("not_installed",))
    assert identity.load_embedder(IdentityConfig()) is None
    message = r"^identity.model=dlib needs the package not_installed: pip install 'talkforge\[dlib\]'$"
    with pytest.raises(MissingExtraError, match=message):
        identity.load_embedder(IdentityConfig(model="dlib"))


# --------------------------------------------------------------------------- real people


def crops_of(path: Path, square: tuple[int, int, int], bundle: Path) -> np.ndarray:
    """Aligned faces of frames spread over a clip."""
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(bundle)))
    x, y, edge = square
    crops = []
    with vision.FaceLandmarker.create_from_options(options) as landmarker:
        frames = list(media.read_frames(path, video, video.start_s, video.start_s + 2.9))
        for index in np.linspace(0, len(frames) - 1, FRAMES_PER_CLIP).astype(int):
            rgb = np.ascontiguousarray(frames[index].rgb()[y : y + edge, x : x + edge])
            (found,) = landmarker.detect(mp.Image(mp.ImageFormat.SRGB, rgb)).face_landmarks
            points = np.array([[p.x * edge, p.y * edge, p.z * edge] for p in found], np.float32)
            crops.append(identity.align(rgb, points))
    return np.stack(crops)


@pytest.fixture(scope="module")
def grid_crops(real_clip: RealClip, packaged: Packaged) -> dict[str, np.ndarray]:
    bundle = packaged("face_landmarker")
    return {clip: crops_of(real_clip(clip), GRID_SQUARE, bundle) for clip in GRID}


@pytest.fixture(scope="module")
def crops(
    grid_crops: dict[str, np.ndarray], real_clip: RealClip, packaged: Packaged
) -> dict[str, np.ndarray]:
    bundle = packaged("face_landmarker")
    return grid_crops | {clip: crops_of(real_clip(clip), square, bundle) for clip, square in OTHERS.items()}


@pytest.fixture
def embedder(weights_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> identity.Embedder:
    monkeypatch.setenv("TALKFORGE_MODELS", str(weights_dir))
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))
    found = identity.load_embedder(IdentityConfig())
    assert found is not None
    return found


def test_auto_takes_mobilefacenet_where_it_is_all_there_is(embedder: identity.Embedder) -> None:
    assert (embedder.name, embedder.dim) == ("mobilefacenet", 128)
    assert embedder.sha256 == registry.MODELS["mobilefacenet"].sha256


def test_aligned_eyes_are_where_the_template_has_them(
    grid_crops: dict[str, np.ndarray], packaged: Packaged
) -> None:
    """The landmarker, run anew on the enlarged crop, finds the five points near the template."""
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(packaged("face_landmarker")))
    )
    with vision.FaceLandmarker.create_from_options(options) as landmarker:
        for clip in GRID:
            large = cv2.copyMakeBorder(grid_crops[clip][0], 40, 40, 40, 40, cv2.BORDER_REPLICATE)
            large = cv2.resize(large, (768, 768))
            (found,) = landmarker.detect(mp.Image(mp.ImageFormat.SRGB, large)).face_landmarks
            five = np.array([[found[i].x, found[i].y] for i in identity.FIVE_POINTS]) * 192 - 40
            assert np.linalg.norm(five - identity.TEMPLATE, axis=1).max() < 8.0


def test_one_person_is_similar_and_different_people_are_not(
    crops: dict[str, np.ndarray], embedder: identity.Embedder
) -> None:
    half = FRAMES_PER_CLIP // 2
    people = {clip: embedder.embed(faces) for clip, faces in crops.items()}
    for clip, vectors in people.items():
        np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1.0, atol=1e-6)
        first, _ = identity.summarise(vectors[:half])
        second, _ = identity.summarise(vectors[half:])
        assert float(first @ second) >= 0.7, clip
        assert identity.summarise(vectors)[1] >= 0.7, clip
    for one, other in combinations(people, 2):
        assert float((people[one] @ people[other].T).max()) <= 0.4, (one, other)


def test_a_vector_depends_neither_on_its_batch_nor_on_the_number_of_threads(
    crops: dict[str, np.ndarray], embedder: identity.Embedder, tmp_path: Path
) -> None:
    faces = crops["grid_bbaf2n.mpg"]
    together = embedder.embed(faces)
    assert np.concatenate([embedder.embed(face[None]) for face in faces]).tobytes() == together.tobytes()
    np.save(tmp_path / "faces.npy", faces)
    code = (
        "import sys, numpy as np\n"
        "from talkforge.curation.face import identity\n"
        "from talkforge.schemas.config import IdentityConfig\n"
        "faces = np.load(sys.argv[1])\n"
        "np.save(sys.argv[2], identity.load_embedder(IdentityConfig()).embed(faces))\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "faces.npy"), str(tmp_path / "vectors.npy")]
    root = Path(identity.__file__).resolve().parents[2]
    subprocess.run(arguments, check=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert np.load(tmp_path / "vectors.npy").tobytes() == together.tobytes()


def test_dlib_tells_people_apart_by_its_own_threshold(crops: dict[str, np.ndarray]) -> None:
    pytest.importorskip("dlib")
    path = registry.present("dlib")
    if path is None:
        pytest.skip("dlib's weights are not here: talkforge models --fetch dlib")
    embedder = identity.Dlib("dlib", path, registry.MODELS["dlib"].sha256)
    people = {clip: embedder.embed(faces[::2]) for clip, faces in crops.items()}
    least = identity.SAME_PERSON_SIMILARITY["dlib"]
    for clip, vectors in people.items():
        assert (vectors.shape, vectors.dtype) == ((3, 128), np.float32)
        np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1.0, atol=1e-6)
        flipped, _ = identity.summarise(embedder.embed(np.ascontiguousarray(crops[clip][::2, :, ::-1])))
        assert float(identity.summarise(vectors)[0] @ flipped) > least, clip
    faces = crops["st_katie.mp4"][::2]
    assert embedder.embed(faces[1:2]).tobytes() == people["st_katie.mp4"][1:2].tobytes()
    medians = [identity.summarise(vectors)[0] for vectors in people.values()]
    assert max(float(a @ b) for a, b in combinations(medians, 2)) < least
