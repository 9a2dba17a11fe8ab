"""Clips of a data set as a PyTorch data set: whole clips, decoded to tensors.

For spans of one length, buckets of one size and cached latents, as training wants them, see
`training/data/loader.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from talkforge.pipeline.store import Store
from talkforge.samples import Sample, read_shard
from talkforge.schemas.machine import check_sockets


class ClipDataset(IterableDataset):  # type: ignore[misc]  # torch is untyped to mypy
    """Samples as dictionaries of tensors. Each shard is read by one process of one rank.

    Clips differ in length and size, so use `batch_size=None`, or collate them yourself.

    Args:
        store: the data set.
        urls: paths or URIs of its tar files.
    """

    def __init__(self, store: Store, urls: tuple[str, ...]) -> None:
        self._store, self._urls = store, urls

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info():
            check_sockets()
        reader, readers = _this_reader()
        for url in self._urls[reader::readers]:
            for sample in read_shard(self._store, url):
                yield tensors(sample)


def _this_reader() -> tuple[int, int]:
    """Number of this process among all that read, and how many there are."""
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    worker = get_worker_info()
    own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
    return rank * workers + own, world * workers


def tensors(sample: Sample) -> dict[str, Any]:
    """A sample as tensors.

    Args:
        sample: of a shard.

    Returns:
        A dictionary with
        `key` (str), `fps` (float), `text` (str),
        `frames` uint8 [F, H, W, 3], `masks` bool [F, H, W], `lip_valid` uint8 [F],
        `face_masks` bool [F, H, W], `face_valid` uint8 [F],
        `landmarks` float32 [F, 478, 3], `blendshapes` float32 [F, 52], `joints` float32 [F, J, 3],
        `audio` float32 [N] at 16 kHz, `speech` float32 [L, D] at 50 Hz,
        `identity` float32 [D], empty where none was measured, and
        `omega` float32 [2], motion intensity of face and body, NaN where none was measured.
    """
    omega = [np.nan if value is None else value for value in (sample.meta.omega_face, sample.meta.omega_body)]
    arrays = {
        "frames": sample.frames(),
        "masks": sample.masks(),
        "lip_valid": sample.lip_valid,
        "face_masks": sample.face_masks(),
        "face_valid": sample.face_valid,
        "landmarks": sample.landmarks,
        "blendshapes": sample.blendshapes.astype(np.float32),
        "joints": sample.joints,
        "audio": sample.audio(),
        "speech": sample.speech.astype(np.float32),
        "identity": sample.stored.identity,
        "omega": np.array(omega, np.float32),
    }
    found = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return {"key": sample.key, "fps": sample.meta.clip.fps, "text": sample.text, **found}
