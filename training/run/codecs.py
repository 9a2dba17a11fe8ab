"""The codecs that are fitted to a data set: their statistics, and the decoder of the learned one.

A decoder is fitted once and kept in the run's folder, RUN/codec-<key>.safetensors, until a checkpoint has it.
The key is a hash of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from talkforge.schemas import scratch
from talkforge.schemas.errors import ModelError
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import Batch, DatasetInfo
from talkforge.training.data.loader import SpanLoader
from talkforge.training.run.tensor_files import WRITE_ERRORS, flush, read_tensors, write_tensors
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.learned_codec import LearnedCodec, fit_decoder

log = logging.getLogger(__name__)

STATISTICS_BATCHES = 16
"""Batches from which the linear codec's statistics are computed."""

CHECKED_BATCHES = 8
"""Batches of held-out shards, or else of the training shards, on which a fitted decoder is measured."""

_SHOWN_EVERY_S = 30.0

_VERSION = 1
"""Of the network and its loss: decoders of another version are fitted anew."""


def read_codec(path: Path) -> LinearCodec:
    """A codec as a checkpoint keeps it, linear or learned.

    Args:
        path: of the file.

    Raises:
        ModelError: it is damaged.
    """
    return _of_state(read_tensors(path), str(path))


def _of_state(state: Mapping[str, Tensor], name: str) -> LinearCodec:
    if "sha256" in state:
        return LearnedCodec.of_state(state, name)
    try:
        return LinearCodec(state)
    except KeyError as error:
        raise ModelError(f"{name}: expected a codec, found no {error}") from None


def fitted(
    config: TrainConfig, info: DatasetInfo, before: LinearCodec | None, device: torch.device, *, main: bool
) -> LinearCodec:
    """The codec that `config.codec.kind` names, 'linear' or 'learned', fitted to the run's shards.

    Statistics are the same on every process, because all read the same batches. The learned one's decoder is
    fitted by the main process alone. The others get the linear codec, which encodes alike: only the main
    process decodes.

    Args:
        config: of the run.
        info: of the data set.
        before: the codec of the checkpoint that the run starts from, or None. What fits is taken from it.
        device: where the decoder is fitted.
        main: whether this is the main process.

    Raises:
        ModelError: the decoder in the run's folder is damaged.
        RunError: it cannot be written.
    """
    learned = config.codec.kind == "learned"
    if learned and isinstance(before, LearnedCodec):
        return before
    linear = LinearCodec(before.statistics) if before else _linear(config, info)
    return _learned(config, info, linear, device) if learned and main else linear


def _linear(config: TrainConfig, info: DatasetInfo) -> LinearCodec:
    batches = itertools.islice(_batches(config, info, config.data.batch_size), STATISTICS_BATCHES)
    return LinearCodec.fit(batch.rgb_BFHWC for batch in batches if batch.rgb_BFHWC is not None)


def _learned(
    config: TrainConfig, info: DatasetInfo, linear: LinearCodec, device: torch.device
) -> LearnedCodec:
    path = Path(config.run.out) / f"codec-{_key(config, info, linear)}.safetensors"
    if path.exists():
        return LearnedCodec.of_state(read_tensors(path), str(path))
    steps, begin_s = config.codec.fit_steps, time.monotonic()
    log.info("codec: fitting the decoder, %d steps", steps)
    shown_s = begin_s

    def show(step: int) -> None:
        nonlocal shown_s
        if (now_s := time.monotonic()) - shown_s > _SHOWN_EVERY_S:
            shown_s = now_s
            log.info("codec: step %d of %d, %.0f s left", step, steps, (now_s - begin_s) * (steps / step - 1))

    batches = _batches(config, info, config.codec.fit_batch)
    codec = fit_decoder(linear, batches, steps, config.run.seed, device, show)
    before, after = (_psnr(one, config, info) for one in (linear, codec))
    log.info("codec: PSNR %.2f dB, %.2f dB of the linear codec", after, before)
    with scratch.replacing(path, WRITE_ERRORS) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(part, codec.state())
        flush(part)
    return codec


def _key(config: TrainConfig, info: DatasetInfo, linear: LinearCodec) -> str:
    data = config.data.model_dump(mode="json", include={"num_frames", "shorter_spans", "sizes", "sampling"})
    codec = config.codec.model_dump(mode="json", include={"fit_steps", "fit_batch"})
    parts = [_VERSION, data, codec, config.run.seed, info.fingerprint, linear.sha256]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _batches(config: TrainConfig, info: DatasetInfo, size: int, shards: str | None = None) -> Iterator[Batch]:
    """Batches with frames and without end, the same on every process, of the run's shards or of others."""
    update = {"workers": 0, "batch_size": size, "shards": shards or config.data.shards}
    return iter(SpanLoader(config.data.model_copy(update=update), info, seed=config.run.seed))


def _psnr(codec: LinearCodec, config: TrainConfig, info: DatasetInfo) -> float:
    """Of frames that went through the codec, dB."""
    errors = []
    batches = _batches(config, info, config.codec.fit_batch, config.data.validation_shards)
    for batch in itertools.islice(batches, CHECKED_BATCHES):
        assert batch.rgb_BFHWC is not None, "a codec is checked on frames"
        seen = codec.decode(codec.encode(batch.rgb_BFHWC))
        errors.append((seen.float() - batch.rgb_BFHWC.float()).square().mean())
    return float(10 * torch.log10(255**2 / torch.stack(errors).mean()))
