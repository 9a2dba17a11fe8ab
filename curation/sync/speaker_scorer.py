"""Speaker scores of one clip: Light-ASD (is the face seen to speak?) and SyncNet (does it match the audio?).

Both are optional, because they cost CPU time and their weights may not be used commercially.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from talkforge.curation.face.crops import to_asd
from talkforge.curation.sync.active_speaker import LightAsd, speaking_fraction
from talkforge.curation.sync.syncnet import SyncNet
from talkforge.curation.weights import registry
from talkforge.curation.weights.torch import torch_device
from talkforge.schemas import extras
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import Device, SpeakerConfig
from talkforge.schemas.records import Clip, Speaker


@dataclass(frozen=True)
class SpeakerScorer:
    """Scores the face crops of clips with the enabled networks, at least one of them.

    They run in the pass over the frames, on one thread of the CPU or on a GPU, so that only the crops of the
    clips in view are held in memory.

    Attributes:
        light_asd: active speaker detection; None: not enabled.
        syncnet: Sync-C and Sync-D; None: not enabled.
    """

    light_asd: LightAsd | None
    syncnet: SyncNet | None

    def measure(
        self, clip: Clip, crops: Bytes, samples: Floats, spans: Sequence[tuple[float, float]]
    ) -> Speaker:
        """Score the face of a clip.

        Args:
            clip: the clip.
            crops: RGB uint8 [F, 224, 224, 3] of `face.crops.crop_face`, one for each frame.
            samples: float32 [N] in [-1, 1], the clip's audio at 16 kHz.
            spans: speech as `vad.segments` returns it, source seconds.
        """
        fraction = None
        if self.light_asd is not None:
            faces = np.stack([to_asd(crop) for crop in crops])
            fraction = speaking_fraction(
                self.light_asd.score(faces, samples, clip.fps), speech_mask(clip, spans)
            )
        score = self.syncnet.score(crops, samples, clip.fps) if self.syncnet is not None else None
        return Speaker(
            speaking_fraction=fraction,
            sync_c=score.sync_c if score else None,
            sync_d=score.sync_d if score else None,
            sync_net_offset_frames=score.offset_frames if score else None,
        )


def load(config: SpeakerConfig, device: Device = "cpu") -> SpeakerScorer | None:
    """Load the networks that the configuration enables; None where it enables none.

    Args:
        config: which networks are enabled.
        device: `measure.device`.

    Raises:
        ModelError: weights are not available, or not the right ones; or torch does not see the device.
        MissingExtraError: torch is not installed.
    """
    if not (config.active_speaker or config.syncnet):
        return None
    extras.require("torch", "measure.speaker")
    on = str(torch_device(device, "measure.device"))
    light_asd = LightAsd(registry.weights(LightAsd.name), on) if config.active_speaker else None
    syncnet = SyncNet(registry.weights(SyncNet.name), on) if config.syncnet else None
    return SpeakerScorer(light_asd, syncnet)


def speech_mask(clip: Clip, spans: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    """Whether there is speech at the time of each frame [F].

    Args:
        clip: the clip.
        spans: speech, (start_s, end_s) in source seconds.
    """
    times_s = clip.start_s + np.arange(clip.num_frames) / clip.fps
    inside = np.zeros(clip.num_frames, bool)
    for start_s, end_s in spans:
        inside |= (times_s >= start_s) & (times_s < end_s)
    return inside
