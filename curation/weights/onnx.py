"""ONNX models: opened in onnxruntime on one thread, so that equal inputs give equal outputs."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from talkforge.schemas.errors import ModelError, one_line

ERRORS_ONLY = 3
"""onnxruntime's log level for errors. Its warnings are about how a model was exported, not about results."""


def open_onnx(model: Path | bytes, label: str) -> onnxruntime.InferenceSession:
    """A session on the CPU with one thread, because the order in which threads add up is not fixed.

    Args:
        model: path of an ONNX file, or its content.
        label: names the model in the error.

    Raises:
        ModelError: not an ONNX model that runs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class but this
        reason = one_line(error)
        raise ModelError(f"{label}: is not an ONNX model that runs: {reason}") from None
