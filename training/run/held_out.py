"""Loss on held-out samples at fixed noise levels.

The loss of a training step depends on the noise levels that were drawn. This one does not: samples, noise and
levels are the same each time, and nothing is dropped.
"""

from __future__ import annotations

import itertools

import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import Batch, DatasetInfo
from talkforge.training.data.loader import SpanLoader
from talkforge.training.objective import losses
from talkforge.training.objective.step import KeepMask, conditions, encode
from talkforge.training.wan.alignment import latent_masks
from talkforge.training.wan.encoders import Encoders
from talkforge.training.wan.talking_wan import TalkingWan

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels, of 1."""

SAMPLES = 8
"""Samples, or one for each process where there are more processes (ours)."""


class HeldOut:
    """Held-out samples, shared by all processes, each of which keeps its own."""

    def __init__(self, config: TrainConfig, info: DatasetInfo, accelerator: Accelerator) -> None:
        """Reads the samples.

        Args:
            config: of the run, with `data.validation_shards`.
            info: of the data set.
            accelerator: of this process.

        Raises:
            CommandError, DatasetError: the shards cannot be read, or no sample can be used.
        """
        own = config.data.model_copy(
            update={"shards": config.data.validation_shards, "workers": 0, "batch_size": 1, "cache_mb": 0}
        )
        world, rank = accelerator.num_processes, accelerator.process_index
        count = world * -(-SAMPLES // world)
        read = itertools.islice(SpanLoader(own, info, seed=0), count)
        self._batches = [(number, batch) for number, batch in enumerate(read) if number % world == rank]
        self._config, self._accelerator = config, accelerator

    def measure(self, model: TalkingWan, encoders: Encoders) -> dict[str, float]:
        """Mean squared error of the velocity at each level, over everything and under the lip mask.

        Every process has to call this, and gets the same. Where no sample has lips, they have no value.

        Args:
            model: the unwrapped model. It is left as it was.
            encoders: of frames, prompts and reference images.
        """
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                own = torch.stack([self._losses(model, encoders, *one) for one in self._batches])
        finally:
            model.train(training)
        means_L2 = self._accelerator.gather(own).double().cpu().nanmean(0)
        found: dict[str, float] = {}
        for level, (unmasked, lips) in zip(LEVELS, means_L2.tolist(), strict=True):
            found[f"held_out_{level}"] = unmasked
            if lips == lips:
                found[f"held_out_lips_{level}"] = lips
        return found

    def _losses(self, model: TalkingWan, encoders: Encoders, number: int, batch: Batch) -> Tensor:
        """Both errors of a sample at each level, [levels, 2]."""
        config, device = self._config, self._accelerator.device
        batch = batch.to(device)
        encoded = encode(batch, encoders, None)
        latents = encoded.latents_BCTHW
        assert latents is not None, "a batch of frames has latents"
        given = conditions(batch, encoded, KeepMask.all(batch.size), config.adapters, config.run.stage)
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(number)).to(device)
        grid_HW = (latents.shape[3], latents.shape[4])
        mask = latent_masks(batch.lips_BFHW, batch.lip_valid_BF, grid_HW, config.loss.mask_resize)
        rows = []
        for level in LEVELS:
            sigma_B = torch.full((batch.size,), level, device=device)
            predicted = model(losses.noised(latents, noise, sigma_B), losses.TIMESTEPS * sigma_B, given)
            target, none = losses.velocity(latents, noise), torch.zeros_like(sigma_B, dtype=torch.bool)
            loss = losses.flow_loss(predicted, target, mask, none, torch.ones_like(sigma_B), config.loss)
            rows.append(torch.stack([loss.unmasked, loss.lips]).float())
        return torch.stack(rows)
