"""Captions of clips by any vision-language model of transformers, for the prompt that one trains with."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talkforge.curation import media
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.weights import hub
from talkforge.curation.weights.torch import inference, torch_device
from talkforge.pipeline.annotate import CAPTIONS, Clips, Counts, annotate
from talkforge.pipeline.store import Store
from talkforge.schemas import extras, scratch
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.config import config_hash
from talkforge.schemas.errors import DatasetError, MediaError, ModelError, class_and_message, one_line
from talkforge.schemas.records import CaptionRow, Input, Record

log = logging.getLogger(__name__)

PROMPT = "Describe the person, what they do and where they are, in one or two sentences."


class CaptionOptions(Record):
    """What a caption depends on."""

    model: str
    """Folder, or name on transformers' hub."""
    prompt: str = PROMPT
    num_pictures: int = 1
    max_tokens: int = 128
    device: str = "auto"


class Captioner:
    """A model and its processor, loaded once; greedy, so that one clip gives one caption.

    Raises:
        ModelError: no such model, weights of another format than safetensors, or it cannot chat.
    """

    def __init__(self, options: CaptionOptions) -> None:
        extras.require("torch", "caption")
        import torch

        self._options = options
        self._device = torch_device(options.device, "--device")
        dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        self._processor, model, self.sha256 = _load(options.model, dtype)
        self._model = model.eval().to(self._device)
        folder = Path(options.model)
        self.name = folder.resolve().name if folder.is_dir() else options.model
        made = options.model_copy(update={"model": self.name, "device": self._device.type})
        self.fingerprint = hashlib.sha256(f"{self.sha256} {config_hash(made)}".encode()).hexdigest()

    def caption(self, frames: Sequence[Bytes]) -> str:
        """What the model says of RGB frames [H, W, 3] in the order in which they are shown."""
        from PIL import Image

        images = [Image.fromarray(frame) for frame in frames]
        content = [{"type": "image", "image": image} for image in images]
        asked = [{"role": "user", "content": [*content, {"type": "text", "text": self._options.prompt}]}]
        with inference():
            inputs = self._processor.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self._device, self._model.dtype)
            tokens = self._model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=self._options.max_tokens
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        return " ".join(str(self._processor.decode(new, skip_special_tokens=True)).split())

    def rows(self, clips: Clips) -> Iterator[CaptionRow]:
        """A row for each (clip id, MP4 bytes), in order; a clip that fails is a row as well."""
        for key, mp4 in clips:
            failure, text = None, ""
            try:
                text = self.caption(shown(key, mp4, self._options.num_pictures))
            except (MediaError, DatasetError, ValueError, RuntimeError) as error:
                log.debug("caption %s", key, exc_info=True)
                failure = class_and_message(error)
            yield CaptionRow(
                clip_id=key, failure=failure, text=text, model=self.name, model_sha256=self.sha256,
                fingerprint=self.fingerprint, prompt=self._options.prompt,
                num_pictures=self._options.num_pictures,
            )  # fmt: skip


def caption(
    store: Store,
    options: CaptionOptions,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Counts:
    """Caption every clip in the shards that is not; `captions.parquet` holds the rows.

    Raises:
        CommandError: there are no shards. ModelError: the model cannot be used.
    """
    captioner = Captioner(options)
    return annotate(store, CAPTIONS, captioner.fingerprint, captioner.rows, on_progress)


def shown(key: str, mp4: bytes, count: int) -> list[Bytes]:
    """`count` frames [H, W, 3] of an MP4 file, in the middles of as many equal spans of its frames.

    Raises:
        MediaError: it cannot be decoded. DatasetError: it has fewer frames.
    """
    with scratch.file(".mp4") as path:
        path.write_bytes(mp4)
        video = probe(path, Input(uri=f"{key}.mp4"), content_hash(path))
        total = round((video.end_s - video.start_s) * video.fps)
        if total < count:
            raise DatasetError(f"clip {key}: expected at least {count} frames, found {total}")
        wanted = set(np.floor((np.arange(count) + 0.5) * total / count).astype(int).tolist())
        return [
            frame.rgb(video.width_px, video.height_px)
            for index, frame in enumerate(media.read_frames(path, video))
            if index in wanted
        ]


def _load(source: str, dtype: Any) -> tuple[Any, Any, str]:
    """Processor, model, and the sha256 of its weights."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import cached_file

    local = hub.is_local(source, "config.json", "captioner")
    try:
        processor = AutoProcessor.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        model, loading = AutoModelForImageTextToText.from_pretrained(
            source, local_files_only=local, trust_remote_code=False, use_safetensors=True, dtype=dtype,
            output_loading_info=True,
        )  # fmt: skip
        folder = Path(cached_file(source, "config.json", local_files_only=True)).parent
    except Exception as error:  # files of any kind can be under that name, and fail in any way
        log.debug("captioner %s", source, exc_info=True)
        raise ModelError(f"captioner {source}: cannot be loaded: {one_line(error)}") from None
    if loading["missing_keys"]:
        first = sorted(loading["missing_keys"])[0]
        raise ModelError(
            f"captioner {source}: its weights lack {len(loading['missing_keys'])} tensors: {first} ..."
        )
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"captioner {source}: expected a model that chats, found no chat template")
    hashes = [sha256_of(path) for path in sorted(folder.glob("*.safetensors"))]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return processor, model, sha256
