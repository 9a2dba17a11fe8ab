"""Is this face the one that is heard? Light-ASD and SyncNet on the face crops of one clip.

They are used where they are asked for: they cost CPU time, and nobody may use their weights commercially.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from talkforge.curation.face.crops import to_asd
from talkforge.curation.sync.active_speaker import LightAsd, speaking_fraction
from talkforge.curation.sync.syncnet import SyncNet
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import SpeakerConfig
from talkforge.schemas.records import Clip, Speaker


@dataclass(frozen=True)
class SpeakerScorer:
    """The networks that are to be used, at least one of them. They run on the CPU, one thread, in the
    pass over the frames, so that no more than the crops of the clips in view is held."""

    light_asd: LightAsd | None
    syncnet: SyncNet | None

    def measure(
        self, clip: Clip, crops: Bytes, samples: Floats, spans: Sequence[tuple[float, float]]
    ) -> Speaker:
        """What the networks say of a face.

        Args:
            crops: RGB uint8 [F, 224, 224, 3] of `face_crops.crop_face`, one a frame of the clip.
            samples: float32 [N], the clip's audio at 16 kHz.
            spans: speech as `speech.segments` gives it, source seconds.
        """
        fraction = None
        if self.light_asd is not None:
            faces = np.stack([to_asd(crop) for crop in crops])
            fraction = speaking_fraction(self.light_asd.score(faces, samples, clip.fps), heard(clip, spans))
        score = self.syncnet.score(crops, samples, clip.fps) if self.syncnet is not None else None
        return Speaker(
            speaking_fraction=fraction,
            sync_c=score.sync_c if score else None,
            sync_d=score.sync_d if score else None,
            sync_net_offset_frames=score.offset_frames if score else None,
        )


def load(config: SpeakerConfig) -> SpeakerScorer | None:
    """The networks that the configuration asks for; None where it asks for none.

    Raises:
        ModelError: weights are missing, or they are not what they should be.
    """
    light_asd = LightAsd(registry.weights(LightAsd.name)) if config.active_speaker else None
    syncnet = SyncNet(registry.weights(SyncNet.name)) if config.syncnet else None
    return SpeakerScorer(light_asd, syncnet) if light_asd or syncnet else None


def heard(clip: Clip, spans: Sequence[tuple[float, float]]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[F]: whether there is speech at the instant of each frame."""
    times_s = clip.start_s + np.arange(clip.num_frames) / clip.fps
    inside = np.zeros(clip.num_frames, bool)
    for start_s, end_s in spans:
        inside |= (times_s >= start_s) & (times_s < end_s)
    return inside
