"""The page of `talkforge studio`, on which portraits speak. Begin with `studio.py`."""
