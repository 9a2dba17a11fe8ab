"""What tests do not inherit from whoever starts them, and fixtures that every test may ask for."""
# ruff: noqa: E402

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Variables that would change what is found. Libraries read some of them when they are imported, so they go
# first. The cache stays: real weights are fetched once, not in every run.
LIBRARIES = ("ACCELERATE_", "FSDP_", "HF_", "HUGGINGFACE_", "RAY_", "TALKFORGE_", "TRANSFORMERS_")
PROCESS_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
NAMES = {*PROCESS_GROUP, *TERMINAL, "PYTHONWARNINGS"}
for name in {name for name in os.environ if name.startswith(LIBRARIES) or name in NAMES} - {
    "TALKFORGE_CACHE"
}:
    del os.environ[name]

# Ray and loader processes open sockets in the folder for temporary files, whose paths have 107 bytes at most.
if len(os.environ.get("TMPDIR", "")) > 40:
    del os.environ["TMPDIR"]
    tempfile.tempdir = None

# nohup and background jobs of scripts have signals ignored, and whatever is started from them inherits that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# The folders at the top of the repository are no packages here: a module imported by a second name would be
# a second module, and what a test patches in one would not be seen in the other.
sys.modules.update(dict.fromkeys(("schemas", "curation", "pipeline", "training")))  # type: ignore[arg-type]

from examples.talking_heads import varied_take, write
from talkforge.curation.weights import registry
from talkforge.pipeline import jobs
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.store import Store
from talkforge.schemas.config import load_config
from talkforge.schemas.errors import ModelError
from tests.browser import chromium  # noqa: F401 (a fixture)
from tests.media_files import Pictures, Sounds, steady, write_media

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
"""Further real clips and weights that may not be copied into the repository."""

CLIPS = ROOT / "examples" / "clips"
"""The real clips that every checkout has: GRID sentences."""

RealClip = Callable[[str], Path]
Packaged = Callable[[str], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make nightly` runs long proofs in full, `make test` their short form."""
    parser.addoption("--full", action="store_true", help="run long proofs in full, not in their short form")


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether long proofs run in full."""
    return bool(pytestconfig.getoption("full"))


@pytest.fixture(scope="session")
def real_clip() -> RealClip:
    """Finds a real clip by its file name; a test that needs one that is missing is skipped."""

    def find(name: str) -> Path:
        folders = (CLIPS, SHARED / "clips", SHARED / "people" / "real")
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        return path or pytest.skip(f"the real clip {name} is not here: {SHARED.name}/ beside the checkout")

    return find


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Folder of all real clips; tests that need it are skipped where it is missing."""
    folder = SHARED / "clips"
    return folder if folder.is_dir() else pytest.skip(f"{SHARED.name}/clips is not here beside the checkout")


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """Folder of odd files with known truth; tests that need it are skipped where it is missing."""
    folder = SHARED / "cases"
    return folder if folder.is_dir() else pytest.skip(f"{SHARED.name}/cases is not here beside the checkout")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Folder of weights that no package carries; tests that need it are skipped where it is missing."""
    folder = SHARED / "weights"
    return (
        folder if folder.is_dir() else pytest.skip(f"{SHARED.name}/weights is not here beside the checkout")
    )


@pytest.fixture(scope="session")
def packaged() -> Packaged:
    """Finds weights that a package carries by their name; a test is skipped where no index is reached."""

    def find(name: str) -> Path:
        try:
            return registry.weights(name)
        except ModelError as error:
            pytest.skip(str(error))

    return find


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
    config = load_config(ROOT / "configs" / "offline.yaml", SETTINGS)
    jobs.curate([str(videos)], Store(str(folder / "set")), config, InlineExecutor)
    return Curated(folder / "set", videos)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server on the loopback interface: moto's, which keeps objects in memory."""
    server_module = pytest.importorskip("moto.server", reason="the packages of [dev] are not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty bucket on that server, which child processes reach as well."""
    import s3fs

    name = f"b{uuid.uuid4().hex}"
    for key, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def curated(measured: Curated, tmp_path: Path) -> Curated:
    """A copy of the data set that a test may change; times of change are kept."""
    shutil.copytree(measured.dataset, tmp_path / "set")
    return Curated(tmp_path / "set", measured.videos)


_CHANGES = ("write", "link", "delete", "delete_folder")


def kill_at(monkeypatch: pytest.MonkeyPatch, last: int) -> list[int]:
    """Lets `last` more changes of a store happen, then dies; what is left of them."""
    left = [last]

    def step(real: Any, *arguments: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*arguments)

    for name in _CHANGES:
        real = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda *arguments, real=real: step(real, *arguments))
    return left
