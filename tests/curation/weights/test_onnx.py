"""Which device onnxruntime is given, and what is said where it is not there. No GPU is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from talkforge.curation.body import dwpose, pose
from talkforge.curation.face import detect, identity
from talkforge.curation.shots import transnet
from talkforge.curation.sync import speaker_scorer
from talkforge.curation.weights import onnx, registry
from talkforge.pipeline import executor, needs, stages
from talkforge.pipeline.store import Store
from talkforge.schemas.config import (
    Config,
    Device,
    IdentityConfig,
    MeasureConfig,
    MotionConfig,
    ScanConfig,
    SpeakerConfig,
)
from talkforge.schemas.errors import ModelError
from tests.curation.face.test_detect import told_scrfd

NOT_BUILT = (
    "measure.device=cuda: the installed onnxruntime runs on CPUs only: "
    "pip uninstall onnxruntime, then pip install onnxruntime-gpu[cuda,cudnn]"
)


@dataclass
class Runtime:
    """Stands in for onnxruntime.

    Attributes:
        built: providers that it is built for.
        starts: whether CUDA starts; if it does not, onnxruntime falls back to the CPU.
        opened: options and providers of each session.
        preloaded: how often CUDA's libraries were loaded.
    """

    built: list[str]
    starts: bool
    opened: list[tuple[Any, list[Any]]]
    preloaded: int = 0

    def open(self, _: str, options: Any, providers: list[Any]) -> Any:
        self.opened.append((options, providers))
        given = [one if isinstance(one, str) else one[0] for one in providers]
        names = [name for name in given if self.starts or name != onnx.CUDA]
        return type("Session", (), {"get_providers": lambda _: names})()

    def preload(self) -> None:
        self.preloaded += 1


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """An onnxruntime that is built for CUDA, on a machine with a GPU."""
    stub = Runtime([onnx.CUDA, onnx.CPU], True, [])
    monkeypatch.setattr(onnx.onnxruntime, "get_available_providers", lambda: stub.built)
    monkeypatch.setattr(onnx.onnxruntime, "InferenceSession", stub.open)
    monkeypatch.setattr(onnx.onnxruntime, "preload_dlls", stub.preload)
    return stub


def test_a_cpu_is_used_unless_a_gpu_is_asked_for(runtime: Runtime) -> None:
    assert MeasureConfig().device == "cpu"
    assert not onnx.runs_on_gpu(onnx.open_onnx(Path("a.onnx"), "a"))
    ((options, providers),) = runtime.opened
    assert providers == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.use_deterministic_compute) == (1, False)
    assert runtime.preloaded == 0


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_gpu_runs_repeatably_with_the_cpu_beside_it(runtime: Runtime, device: Device) -> None:
    assert onnx.runs_on_gpu(onnx.open_onnx(Path("a.onnx"), "a", device))
    ((options, providers),) = runtime.opened
    assert providers == [("CUDAExecutionProvider", onnx.CUDA_OPTIONS), "CPUExecutionProvider"]
    assert onnx.CUDA_OPTIONS["cudnn_conv_algo_search"] == "HEURISTIC"
    assert onnx.CUDA_OPTIONS["use_tf32"] == "0"
    assert options.use_deterministic_compute
    assert runtime.preloaded == 1


def test_without_cuda_in_the_package_the_line_says_what_to_install(runtime: Runtime) -> None:
    runtime.built = [onnx.CPU]
    with pytest.raises(ModelError) as caught:
        onnx.open_onnx(Path("a.onnx"), "a", "cuda")
    assert str(caught.value) == NOT_BUILT
    assert not onnx.runs_on_gpu(onnx.open_onnx(Path("a.onnx"), "a", "auto"))
    assert [providers for _, providers in runtime.opened] == [["CPUExecutionProvider"]]
    assert runtime.preloaded == 0


def test_a_gpu_that_does_not_start_is_refused_and_auto_goes_on_without(runtime: Runtime) -> None:
    runtime.starts = False
    with pytest.raises(ModelError) as caught:
        onnx.open_onnx(Path("a.onnx"), "a: a.onnx", "cuda")
    assert str(caught.value) == (
        "a: a.onnx: measure.device=cuda: onnxruntime could not start CUDA on this machine"
    )
    assert not onnx.runs_on_gpu(onnx.open_onnx(Path("a.onnx"), "a", "auto"))


@pytest.mark.parametrize("begin", [needs.gather, needs.look])
def test_a_run_is_refused_before_it_reads_anything(
    runtime: Runtime, begin: Callable[[MeasureConfig], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.built = [onnx.CPU]
    monkeypatch.setattr(needs, "_looked_for", lambda _: pytest.fail("weights were looked for"))
    with pytest.raises(ModelError) as caught:
        begin(MeasureConfig(device="cuda"))
    assert str(caught.value) == NOT_BUILT


class HandedError(Exception):
    """The last argument that something was called with."""


def told(*arguments: Any) -> Any:
    raise HandedError(arguments[-1])


LOADERS: dict[str, tuple[Any, str, Callable[[Device], Any]]] = {
    "centerface": (detect, "open_onnx", lambda on: detect.load_detector(ScanConfig(), on)),
    "scrfd": (detect, "open_onnx", lambda on: detect.load_detector(ScanConfig(detector="scrfd"), on)),
    "dwpose": (dwpose, "open_onnx", lambda on: pose.load_estimator(MotionConfig(body="dwpose"), on)),
    "arcface": (
        identity,
        "open_onnx",
        lambda on: identity.load_embedder(IdentityConfig(model="w600k_r50"), on),
    ),
    "transnet": (
        transnet.TransNet,
        "__init__",
        lambda on: stages._shot_network(ScanConfig(scene_detector="transnet"), on),
    ),
    "light_asd": (
        speaker_scorer.LightAsd,
        "__init__",
        lambda on: speaker_scorer.load(SpeakerConfig(active_speaker=True), on),
    ),
    "syncnet": (
        speaker_scorer.SyncNet,
        "__init__",
        lambda on: speaker_scorer.load(SpeakerConfig(syncnet=True), on),
    ),
}
"""Network -> where it takes its device, and how it is loaded."""


@pytest.mark.parametrize("network", LOADERS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_heavy_network_is_given_the_device(
    network: str, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    path = told_scrfd(tmp_path / "network.onnx")
    monkeypatch.setattr(registry, "weights", lambda _: path)
    where, name, load = LOADERS[network]
    monkeypatch.setattr(where, name, told)
    with pytest.raises(HandedError, match=f"^{device}$"):
        load(device)


@pytest.mark.parametrize("network", ["transnet", "light_asd", "syncnet"])
def test_without_cuda_in_torch_the_line_says_so(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(registry, "weights", Path)
    with pytest.raises(ModelError, match=r"^measure\.device cuda: torch sees no CUDA device$"):
        LOADERS[network][2]("cuda")


class Steps(executor.InlineExecutor):
    """Keeps the chain of a part, and does nothing."""

    def _each(self, work: Any, *_: Any) -> Iterator[Any]:
        self.chain = [(step.function.__name__, step.gpus) for step in work.steps]
        return iter(())


@pytest.mark.parametrize(("device", "measuring"), [("cpu", 0), ("cuda", 0.1), ("auto", 0.1)])
def test_measuring_asks_for_its_share_of_a_gpu_where_it_uses_one(
    device: Device, measuring: float, tmp_path: Path
) -> None:
    config = Config.model_validate({"measure": {"device": device}, "run": {"gpu_share": 0.1}})
    steps = Steps()
    assert list(steps.run([], config, Store(str(tmp_path)))) == []
    assert steps.chain == [("measure", measuring), ("embed", 0.1), ("commit", 0)]
