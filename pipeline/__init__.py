"""How curation runs over many videos. Read `stages.py` first."""
