"""Fixtures that every test may ask for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.talking_heads import varied_take, write
from talkforge.pipeline import jobs
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.store import Store
from talkforge.schemas.config import load_config
from tests.media_files import Pictures, Sounds, steady, write_media

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


# One small data set for all tests that need one which was really measured.

SETTINGS = ("thresholds.min_face_px=64", "shards.max_samples=1", "motion.body=none")


@dataclass(frozen=True)
class Curated:
    """A data set, and the folder of its three videos: two heads, and one without anybody."""

    dataset: Path
    videos: Path


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    folder = tmp_path_factory.mktemp("measured")
    videos = folder / "videos"
    videos.mkdir()
    write(videos / "a.mp4", varied_take(3))
    write(videos / "b.mp4", varied_take(5))
    write_media(videos / "nobody.mp4", Pictures(steady(25)), Sounds([(0, 1)], codec="aac"))
    config = load_config(Path(__file__).parents[1] / "configs" / "offline.yaml", SETTINGS)
    jobs.curate([str(videos)], Store(str(folder / "set")), config, InlineExecutor)
    return Curated(folder / "set", videos)


@pytest.fixture
def curated(measured: Curated, tmp_path: Path) -> Curated:
    """A copy of the data set that a test may change; times of change are kept."""
    shutil.copytree(measured.dataset, tmp_path / "set")
    return Curated(tmp_path / "set", measured.videos)
