"""ONNX models: opened in onnxruntime, repeatably: equal inputs give equal outputs on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from talkforge.schemas.config import Device
from talkforge.schemas.errors import ModelError, one_line

ERRORS_ONLY = 3
"""onnxruntime's log level for errors. Its warnings are about how a model was exported, not about results."""

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""onnxruntime's names of what runs a model."""

CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",
}
"""Kernels are not picked by timing: results would differ between runs, and each new size of a frame would
take long. float32 is not rounded to TF32. Memory grows by what is needed, because processes share a GPU.
Source: onnxruntime's documentation of its CUDA execution provider."""

BATCH_IMAGES = 64
"""Most images in one call on a GPU. Source: ours."""


def require(device: Device) -> None:
    """See that onnxruntime was built for the device, without opening a model.

    Args:
        device: `measure.device`.

    Raises:
        ModelError: "cuda", and the installed onnxruntime has no CUDA; one line that says what to install.
    """
    if device == "cuda" and CUDA not in onnxruntime.get_available_providers():
        raise ModelError(
            "measure.device=cuda: the installed onnxruntime runs on CPUs only: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu[cuda,cudnn]"
        )


def open_onnx(model: Path | bytes, label: str, device: Device = "cpu") -> onnxruntime.InferenceSession:
    """A session with one thread of the CPU, because the order in which threads add up is not fixed.

    Args:
        model: path of an ONNX file, or its content.
        label: names the model in the error.
        device: "cpu", "cuda" for the first GPU, or "auto": CUDA where it starts, else the CPU.

    Raises:
        ModelError: not an ONNX model that runs, or CUDA is asked for and does not start.
    """
    require(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    providers: list[Any] = [CPU]
    if device != "cpu" and CUDA in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # CUDA and cuDNN out of their wheels, where these are installed
        options.use_deterministic_compute = True
        providers = [(CUDA, CUDA_OPTIONS), CPU]
    source = str(model) if isinstance(model, Path) else model
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime's own errors share no base class but this
        reason = one_line(error)
        raise ModelError(f"{label}: is not an ONNX model that runs: {reason}") from None
    if device == "cuda" and not runs_on_gpu(session):  # onnxruntime falls back to the CPU without an error
        raise ModelError(f"{label}: measure.device=cuda: onnxruntime could not start CUDA on this machine")
    return session


def runs_on_gpu(session: onnxruntime.InferenceSession) -> bool:
    """Whether a session runs on a GPU; what CUDA has no kernel for runs on the CPU beside it."""
    return CUDA in session.get_providers()
