"""One step: what is dropped and how, what is drawn, and that the loss is that of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from talkforge.schemas.errors import DatasetError
from talkforge.training.config import AdapterConfig, DropoutConfig, TrainConfig
from talkforge.training.data.batch import Conditions
from talkforge.training.objective.step import (
    EncodedBatch,
    KeepMask,
    Prefix,
    conditions,
    encode,
    training_step,
)
from talkforge.training.wan.alignment import latent_masks
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import Encoders, ImageEncoder
from tests.training.batches import a_batch, a_cache


class Words:
    """Embeds a prompt as its length everywhere."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([torch.full((4, 3), float(len(text))) for text in texts])


class Clip(ImageEncoder):
    """Embeds an image as its mean."""

    def __init__(self) -> None:
        pass

    def encode(self, rgb_BHWC: Tensor) -> Tensor:
        return rgb_BHWC.float().mean(dim=(1, 2, 3)).view(-1, 1, 1).expand(-1, 5, 6) + 1


ENCODERS = Encoders(LinearCodec(), Words(), Clip())


class Recorder:
    """A model that predicts a constant and remembers its conditions."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Conditions]] = []

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        self.calls.append((x, timestep, conditions))
        return torch.full_like(x, 0.25)


def config(stage: str = "frame", **dropout: float) -> TrainConfig:
    rates = {"image": 0.0, "audio": 0.0, "text": 0.0} | dropout
    return TrainConfig.model_validate({"run": {"stage": stage}, "dropout": rates})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_condition_is_dropped_by_itself() -> None:
    keep = KeepMask.draw(40_000, DropoutConfig(image=0.1, audio=0.3, text=0.5), seeded())
    image, audio, text = (~keep.image_B, ~keep.audio_B, ~keep.text_B)
    assert [float(x.float().mean()) for x in (image, audio, text)] == pytest.approx([0.1, 0.3, 0.5], abs=0.01)
    assert float((image & audio).float().mean()) == pytest.approx(0.03, abs=0.005)
    assert float((audio & text).float().mean()) == pytest.approx(0.15, abs=0.01)
    none = KeepMask.draw(100, DropoutConfig(image=0, audio=0, text=0), seeded())
    assert bool((none.image_B & none.audio_B & none.text_B).all())
    every = KeepMask.draw(100, DropoutConfig(image=1, audio=1, text=1), seeded())
    assert not bool((every.image_B | every.audio_B | every.text_B).any())


def test_the_identity_is_dropped_by_itself_where_it_has_a_rate_of_its_own() -> None:
    rates = {"image": 0.3, "audio": 0.1, "text": 0.1}
    together = KeepMask.draw(40_000, DropoutConfig(**rates), seeded())
    apart = KeepMask.draw(40_000, DropoutConfig(**rates, identity=0.2), seeded())
    assert together.identity_B is None and apart.identity_B is not None
    assert torch.equal(together.image_B, apart.image_B) and torch.equal(together.text_B, apart.text_B)
    alone = apart.identity_B & ~apart.image_B
    assert float(alone.float().mean()) == pytest.approx(0.3 * 0.8, abs=0.01)
    keep = torch.tensor([True, False, False])
    _, found = conditions_of(replace(KeepMask.all(3), image_B=keep, identity_B=~keep))
    assert found.face_scale_B.tolist() == [0.0, 0.5, 0.0]  # the third sample has no identity
    assert found.condition_BCTHW.flatten(1).any(dim=1).tolist() == keep.tolist()


def conditions_of(keep: KeepMask) -> tuple[EncodedBatch, Conditions]:
    batch = a_batch(3, texts=("a", "bb", "ccc"), has_identity_B=torch.tensor([True, True, False]))
    encoded = encode(batch, ENCODERS, None)
    return encoded, conditions(batch, encoded, keep, AdapterConfig(), "frame")


def test_nothing_dropped_is_all_conditions() -> None:
    encoded, found = conditions_of(KeepMask.all(3))
    assert torch.equal(found.condition_BCTHW, encoded.condition_BCTHW)
    assert found.text_BSD[:, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert found.image_BKD is not None and encoded.image_BKD is not None
    assert torch.equal(found.image_BKD, encoded.image_BKD)
    assert found.audio_scale_B.tolist() == [1.0, 1.0, 1.0]
    assert found.face_scale_B.tolist() == [0.5, 0.5, 0.0]  # the third clip has no identity


def test_a_dropped_image_takes_first_frame_features_and_face() -> None:
    keep = torch.tensor([False, True, True])
    encoded, found = conditions_of(replace(KeepMask.all(3), image_B=keep))
    assert found.condition_BCTHW[0].abs().max() == 0
    assert torch.equal(found.condition_BCTHW[1:], encoded.condition_BCTHW[1:])
    assert found.image_BKD is not None
    assert found.image_BKD[0].abs().max() == 0 and found.image_BKD[1:].min() > 0
    assert found.face_scale_B.tolist() == [0.0, 0.5, 0.0]
    assert found.audio_scale_B.tolist() == [1.0, 1.0, 1.0]


def test_dropped_audio_is_scale_zero_and_dropped_text_the_empty_prompt() -> None:
    keep = torch.tensor([True, False, True])
    _, found = conditions_of(replace(KeepMask.all(3), audio_B=keep))
    assert found.audio_scale_B.tolist() == [1.0, 0.0, 1.0]
    assert found.text_BSD[:, 0, 0].tolist() == [1.0, 2.0, 3.0]
    _, found = conditions_of(replace(KeepMask.all(3), text_B=keep))
    assert found.text_BSD[:, 0, 0].tolist() == [1.0, 0.0, 3.0]
    assert found.audio_scale_B.tolist() == [1.0, 1.0, 1.0]


def test_branches_that_are_off_are_told_nothing() -> None:
    batch = a_batch()
    encoded = encode(batch, replace(ENCODERS, image=None), None)
    off = conditions(batch, encoded, KeepMask.all(2), AdapterConfig(face=False, motion=False), "clip")
    assert off.identity_BD is None and off.omega_B2 is None and off.image_BKD is None
    no_identity = a_batch(identity_dim=0)
    found = conditions(no_identity, encoded, KeepMask.all(2), AdapterConfig(), "clip")
    assert found.identity_BD is None and found.face_scale_B.tolist() == [0.0, 0.0]


def test_a_cache_stands_for_the_encoders() -> None:
    cached = a_cache()
    batch = a_batch(rgb_BFHWC=None, cached=cached)
    found = encode(batch, replace(ENCODERS, image=None), None)
    assert found.latents_BCTHW is cached.latents_BCTHW and found.condition_BCTHW is cached.condition_BCTHW
    assert found.text_BSD.shape == (2, 4, 3)
    text, empty = torch.ones(2, 4, 3), torch.zeros(4, 3)
    batch = a_batch(rgb_BFHWC=None, cached=replace(cached, text_BSD=text, empty_text_SD=empty))
    found = encode(batch, replace(ENCODERS, image=None), None)
    assert found.text_BSD is text and found.empty_text_SD is empty


def test_a_cache_without_the_features_that_are_needed_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"clip0\+0: expected CLIP features, found none"):
        encode(a_batch(rgb_BFHWC=None, cached=a_cache()), ENCODERS, None)


@pytest.mark.parametrize("stage", ("clip", "frame"))
def test_the_loss_is_that_of_its_parts(stage: str) -> None:
    settings, batch, model = config(stage), a_batch(4), Recorder()
    loss = training_step(model, ENCODERS, batch, settings, seeded(5))
    ((x, timestep, found),) = model.calls
    assert found.stage == stage and found.num_frames == 9
    assert batch.rgb_BFHWC is not None
    latents = LinearCodec().encode(batch.rgb_BFHWC)
    sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
    noise = (x - (1 - sigma) * latents) / sigma
    target = noise - latents
    mask = latent_masks(batch.lips_BFHW, batch.lip_valid_BF, (4, 4), "trilinear")
    error = (0.25 - target).square().mean(1, keepdim=True)
    plain = error.mean(dim=(1, 2, 3, 4))
    lips = (error * mask).sum(dim=(1, 2, 3, 4)) / mask.sum(dim=(1, 2, 3, 4))
    assert float(noise.mean()) == pytest.approx(0, abs=0.05) and float(noise.std()) == pytest.approx(
        1, abs=0.05
    )
    assert float(loss.unmasked) == pytest.approx(float(plain.mean()), rel=1e-4)
    assert float(loss.lips) == pytest.approx(float(lips.mean()), rel=1e-4)
    masked = float(loss.masked_fraction)
    assert masked == 0 if stage == "clip" else 0 < masked <= 1
    if masked in (0, 1):
        expected = plain if masked == 0 else lips
        assert float(loss.total) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_a_step_is_a_function_of_its_generator() -> None:
    settings, batch = config(image=0.5, audio=0.5), a_batch(4)
    totals = [
        float(training_step(Recorder(), ENCODERS, batch, settings, seeded(seed)).total) for seed in (1, 1, 2)
    ]
    assert totals[0] == totals[1] != totals[2]


@pytest.mark.parametrize("stage", ("clip", "frame"))
def test_a_step_weighs_the_face(stage: str) -> None:
    """A mask of the whole frame adds the unmasked loss once more."""
    batch, settings = a_batch(4), config(stage)
    weighted = settings.model_copy(update={"loss": settings.loss.model_copy(update={"face_weight": 2.0})})
    seen = replace(batch, face_BFHW=torch.ones_like(batch.lips_BFHW))
    one, other, off = (
        training_step(Recorder(), ENCODERS, of, how, seeded(3))
        for of, how in ((batch, weighted), (seen, weighted), (seen, settings))
    )
    assert float(one.total) == float(off.total)
    assert float(other.total - one.total) == pytest.approx(2 * float(one.unmasked), rel=1e-4)


def test_stages_draw_the_same_noise() -> None:
    """So that two runs of one seed differ in the stage alone."""
    inputs = []
    for stage in ("clip", "frame"):
        model = Recorder()
        training_step(model, ENCODERS, a_batch(4), config(stage), seeded(3))
        inputs.append(model.calls[0][0])
    assert torch.equal(*inputs)


# --------------------------------------------------------------------------- prefixes


def prefix_config(prefix_frames: int = 5, **dropout: float) -> TrainConfig:
    settings = config(**dropout)
    data = settings.data.model_copy(update={"num_frames": 9, "prefix_frames": prefix_frames})
    return settings.model_copy(update={"data": data})


def test_half_of_the_samples_have_a_prefix_and_its_length_is_drawn() -> None:
    batch, keep = a_batch(4000, edge_px=2), KeepMask.all(4000)
    prefix = Prefix.draw(batch, 5, keep, seeded())
    counts = torch.bincount(prefix.latents_B).tolist()
    assert len(counts) == 3 and sum(counts) == 4000
    assert [count / 4000 for count in counts] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    jumps = prefix.reference_B[prefix.latents_B == 2]
    assert set(jumps.tolist()) == set(range(9))
    assert not prefix.reference_B[prefix.latents_B < 2].any()
    dropped = replace(keep, image_B=torch.zeros(4000, dtype=torch.bool))
    assert not Prefix.draw(batch, 5, dropped, seeded()).latents_B.any()


def test_a_prefix_is_clean_in_what_the_model_sees() -> None:
    """Its latents stand in the noisy ones and in the condition, and begin with the reference image's."""
    batch, model = a_batch(64), Recorder()
    training_step(model, ENCODERS, batch, prefix_config(), seeded(1))
    ((x, timestep, found),) = model.calls
    assert batch.rgb_BFHWC is not None and found.image_BKD is not None
    codec, kinds = LinearCodec(), set()
    latents = codec.encode(batch.rgb_BFHWC)
    images = codec.encode(batch.rgb_BFHWC.flatten(0, 1)[:, None]).unflatten(0, (64, 9))
    for k in range(64):
        given = found.condition_BCTHW[k, :4].flatten(2).mean(dim=2)
        count = int(given[0].sum())
        assert torch.equal(given, (torch.arange(3) < count).float().expand(4, 3))
        # Which frame the reference image is, by the CLIP features: a mean of the frame and 1.
        means = batch.rgb_BFHWC[k].float().mean(dim=(1, 2, 3)) + 1
        reference = int((means - found.image_BKD[k, 0, 0]).abs().argmin())
        torch.testing.assert_close(found.condition_BCTHW[k, 4:, 0], images[k, reference, :, 0])
        assert reference == 0 or count == 2
        kinds.add((count, reference > 0, bool(timestep[k] > 500)))
        if count == 2:
            clean = torch.cat([images[k, reference], latents[k, :, 1:2]], dim=1)
            torch.testing.assert_close(x[k, :, :2], clean)
            torch.testing.assert_close(found.condition_BCTHW[k, 4:, :2], clean)
        assert not torch.allclose(x[k, :, 2], latents[k, :, 2])
    assert {kind[:2] for kind in kinds} >= {(1, False), (2, True)}
    grey = codec.condition(batch.rgb_BFHWC[:, 0], 9)
    torch.testing.assert_close(found.condition_BCTHW[:, :, 2], grey[:, :, 2])


def test_a_prefix_has_no_loss() -> None:
    """A model that errs in the given latent frames alone has none."""

    class ErrsInThePrefix:
        def __call__(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
            given = conditions.condition_BCTHW[:, :1] > 0.5
            sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
            assert batch.rgb_BFHWC is not None
            latents = LinearCodec().encode(batch.rgb_BFHWC)
            true = (x - latents) / sigma
            # Without a prefix, too, the condition has the reference image, which is then to be predicted.
            prefixed = torch.isclose(x, conditions.condition_BCTHW[:, 4:]).all(dim=(1, 3, 4), keepdim=True)
            return torch.where(given & prefixed, 1e3, true)

    batch = a_batch(16)
    settings = prefix_config(image=0.5)
    loss = training_step(ErrsInThePrefix(), ENCODERS, batch, settings, seeded(2))
    assert float(loss.total) == pytest.approx(0, abs=1e-6) == pytest.approx(float(loss.unmasked), abs=1e-6)
    assert float(loss.lips) == pytest.approx(0, abs=1e-6)


def test_cached_latents_have_a_prefix_that_begins_with_their_first_frame() -> None:
    cached, model = a_cache(32), Recorder()
    batch = a_batch(32, rgb_BFHWC=None, cached=cached)
    training_step(model, replace(ENCODERS, image=None), batch, prefix_config(), seeded(1))
    ((x, _, found),) = model.calls
    given = found.condition_BCTHW[:, 0].flatten(2).mean(dim=2) == 1
    two = given[:, :2].all(dim=1) & ~given[:, 2]
    assert int(two.sum()) >= 3
    torch.testing.assert_close(x[two, :, 0], cached.condition_BCTHW[two, 4:, 0])
    torch.testing.assert_close(x[two, :, 1], cached.latents_BCTHW[two, :, 1])
