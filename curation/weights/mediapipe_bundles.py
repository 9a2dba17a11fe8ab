"""MediaPipe task bundles: load one, and build those for pose and hands from TFLite files of an older wheel.

`PoseLandmarker` and `HandLandmarker` take one `.task` file: a zip of a detector and a landmark model, stored
and 4-byte aligned so that it can be mapped. TFLite metadata in each model give the range of its input. The
wheel's landmark model of the pose has none, because the older graph set the range itself.

MediaPipe is imported where it is used, because it takes a second.
"""

from __future__ import annotations

import ctypes
import io
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np

from talkforge.schemas.arrays import Bytes
from talkforge.schemas.errors import ModelError, one_line

_ALIGNMENT_BYTES = 4
_METADATA_NAME = b"TFLITE_METADATA"
_EPOCH = (1980, 1, 1, 0, 0, 0)

_ZIP_HEADER_BYTES = 30
"""Length of a zip member's local header without its name. Source: PKWARE APPNOTE 4.3.7."""


def load_task(name: str, path: Path, **options: Any) -> Callable[[Bytes], Any]:
    """A MediaPipe task for single images, from its bundle, kept until the process ends.

    Args:
        name: class of the task in `mediapipe.tasks.python.vision`, such as "FaceLandmarker".
        path: the bundle.
        options: further fields of the task's options.

    Returns:
        A function from an image, uint8 RGB [H, W, 3], to the task's result.

    Raises:
        ModelError: the file is not a bundle of this kind.
    """
    with _without_pyplot():
        import mediapipe as mp
        from mediapipe.tasks.python import BaseOptions, vision

    try:
        task = getattr(vision, name).create_from_options(
            getattr(vision, f"{name}Options")(
                base_options=BaseOptions(model_asset_path=str(path)),
                running_mode=vision.RunningMode.IMAGE,
                **options,
            )
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise ModelError(f"{path}: expected a bundle for {name}: {reason}") from None
    # The task is never finalised: at the interpreter's end MediaPipe closes its thread before its
    # tasks, and each task that is left complains on stderr.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))

    def detect(rgb: Bytes) -> Any:
        return task.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(rgb)))

    return detect


@contextmanager
def _without_pyplot() -> Iterator[None]:
    """Keep matplotlib from being imported: MediaPipe's drawing helpers do, which takes 0.5 CPU seconds.

    Their `plot_landmarks`, which alone uses it, does not work in this process afterwards.
    """
    name = "matplotlib.pyplot"
    if name in sys.modules:
        yield
        return
    package, before = types.ModuleType("matplotlib"), sys.modules.get("matplotlib")
    sys.modules |= {"matplotlib": package, name: types.ModuleType(name)}
    package.pyplot = sys.modules[name]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del sys.modules[name], sys.modules["matplotlib"]
        if before is not None:
            sys.modules["matplotlib"] = before


def build_bundle(detector: bytes, landmarks: bytes) -> bytes:
    """Build the pose bundle. The same two files give the same bytes.

    The landmark model's input is the 8-bit grey level over 255. Source: MediaPipe,
    modules/pose_landmark/pose_landmark_by_roi_cpu.pbtxt, output_tensor_float_range 0 to 1.

    Args:
        detector: TFLite model that detects people.
        landmarks: TFLite model of the landmarks of one person.
    """
    return _zipped(
        {
            "pose_detector.tflite": detector,
            "pose_landmarks_detector.tflite": with_input_range(landmarks, mean=0.0, std=255.0),
        }
    )


def build_hand_bundle(detector: bytes, landmarks: bytes) -> bytes:
    """Build the hand bundle. The same two files give the same bytes.

    Args:
        detector: TFLite model that detects palms.
        landmarks: TFLite model of the 21 landmarks of one hand.
    """
    return _zipped({"hand_detector.tflite": detector, "hand_landmarks_detector.tflite": landmarks})


def _zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, date_time=_EPOCH)
            start = out.tell() + _ZIP_HEADER_BYTES + len(name)
            info.extra = _padding(-start % _ALIGNMENT_BYTES)
            bundle.writestr(info, content)
    return out.getvalue()


def _padding(num_bytes: int) -> bytes:
    """An extra field for a zip header, of `num_bytes` modulo the alignment; empty for 0.

    A field is a two-byte id, a two-byte length and that many bytes.
    """
    return b"\x00\x00" + num_bytes.to_bytes(2, "little") + bytes(num_bytes) if num_bytes else b""


def with_input_range(tflite: bytes, mean: float, std: float) -> bytes:
    """A TFLite model with metadata for its input: (grey level - mean) / std, RGB.

    Args:
        tflite: the model.
        mean: subtracted from the grey level, 0 to 255.
        std: divisor.
    """
    from mediapipe.tasks.metadata import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(tflite, 0))
    described = _describe(len(model.subgraphs[0].outputs), mean, std)
    model.metadata = [entry for entry in model.metadata or [] if entry.name != _METADATA_NAME]
    buffer = schema.BufferT()
    buffer.data = list(described)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _METADATA_NAME, len(model.buffers) - 1
    model.metadata.append(entry)
    builder = flatbuffers.Builder(len(tflite) + len(described))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _describe(num_outputs: int, mean: float, std: float) -> bytes:
    """Metadata flatbuffer of a model with one image input and `num_outputs` plain outputs."""
    from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata

    scaling = metadata.NormalizationOptionsT()
    scaling.mean, scaling.std = [mean], [std]
    unit = metadata.ProcessUnitT()
    unit.optionsType, unit.options = metadata.ProcessUnitOptions.NormalizationOptions, scaling
    image = metadata.ImagePropertiesT()
    image.colorSpace = metadata.ColorSpaceType.RGB
    content = metadata.ContentT()
    content.contentPropertiesType = metadata.ContentProperties.ImageProperties
    content.contentProperties = image
    image = metadata.TensorMetadataT()
    image.name, image.content, image.processUnits = "image", content, [unit]
    graph = metadata.SubGraphMetadataT()
    graph.inputTensorMetadata = [image]
    graph.outputTensorMetadata = [metadata.TensorMetadataT() for _ in range(num_outputs)]
    root = metadata.ModelMetadataT()
    root.subgraphMetadata, root.minParserVersion = [graph], "1.0.0"
    builder = flatbuffers.Builder(0)
    builder.Finish(root.Pack(builder), b"M001")
    return bytes(builder.Output())
