"""Talkforge: raw talking-head footage in, training data for audio-driven portrait video out."""

from talkforge.schemas.telemetry import switch_off

switch_off()  # before anything else is imported: libraries read the switches when they are
