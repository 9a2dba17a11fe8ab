"""Talkforge: raw talking-head footage in, training data for audio-driven portrait video out.

    import talkforge

    curated = talkforge.curate("footage/", out="set")
    curated.ledger  # a DataFrame, one row per candidate clip
    for sample in curated.samples(split="train"):
        sample.frames(), sample.masks(), sample.audio(), sample.landmarks

docs/python.md shows all of it. Everything else that is installed is in the packages `talkforge.schemas`,
`talkforge.curation`, `talkforge.pipeline` and `talkforge.training`.
"""

from talkforge.schemas.telemetry import hush_warnings, switch_off

switch_off()  # before anything else is imported: libraries read the switches when they are
hush_warnings()

from talkforge.api import CuratedSet, curate, open  # noqa: E402
from talkforge.samples import Sample  # noqa: E402

__all__ = ["CuratedSet", "Sample", "curate", "open"]
