"""What is measured in one video. Read `scan.py` (the sparse pass) and `trace.py` (the dense pass) first."""
