"""Fixtures that every test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Folder of real clips; tests that need it are skipped where it is missing."""
    folder = SHARED / "clips"
    if not folder.is_dir():
        pytest.skip(f"real clips are not here: {folder.name} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Folder of real weights; tests that need it are skipped where it is missing."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip(f"real weights are not here: {folder.name} beside the checkout")
    return folder
