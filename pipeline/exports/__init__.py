"""Layouts in which other tools read the clips of a data set; `pipeline/export.py` is the command."""
