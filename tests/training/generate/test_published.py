"""The whole command on published weights: every key of the real files, a Wan of their depth, but narrow."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from talkforge.cli import main
from talkforge.schemas.presets import find_config
from talkforge.training.generate import pipeline
from talkforge.training.generate.pipeline import GenerationPipeline, Source
from talkforge.training.generate.savings import Savings
from talkforge.training.wan.encoders import Umt5
from talkforge.training.wan.talking_wan import TalkingWan
from tests.training.generate.test_job import calls_of
from tests.training.run.test_published import published, write
from tests.training.speakers import portrait, shown, tone
from tests.training.tiny_base import TEXT_DIM, write_base

LAYERS, INNER, AUDIO, SPEECH = 40, 24, 16, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `speech`, the weights in three layouts, a portrait and 0.3 s of audio."""
    root = tmp_path_factory.mktemp("published")
    write_base(root / "base")
    torch.manual_seed(0)
    WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=INNER // 2,
        in_channels=36,
        num_layers=LAYERS,
        ffn_dim=32,
        text_dim=TEXT_DIM,
        freq_dim=16,
        image_dim=8,
        added_kv_proj_dim=INNER,
    ).save_pretrained(root / "base" / "transformer")
    config = Wav2Vec2Config(
        hidden_size=SPEECH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(root / "speech")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "speech")
    torch.manual_seed(1)
    parts = published(LAYERS, INNER, AUDIO, SPEECH)
    for layout in ("torch", "prefixed", "flat"):
        (root / layout).mkdir()
        write(root / layout, layout, parts)
    portrait(root / "face.png")
    tone(root / "words.wav", 0.3)
    return root


@pytest.fixture(autouse=True)
def small_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset of published weights with frames of 64 px."""
    text = find_config(pipeline.PUBLISHED_PRESET, "train").text()
    sizes = next(line for line in text.splitlines() if line.strip().startswith("sizes:"))
    (tmp_path / "small.yaml").write_text(text.replace(sizes, "  sizes: [[64, 64]]"), encoding="utf-8")
    monkeypatch.setattr(pipeline, "PUBLISHED_PRESET", str(tmp_path / "small.yaml"))


def command(folder: Path, weights: Path, out: Path, *more: str) -> int:
    arguments = ["generate", "--base", str(folder / "base"), "--adapters", str(weights), "-o", str(out)]
    arguments += ["--image", str(folder / "face.png"), "--audio", str(folder / "words.wav"), "--steps", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--speech-model", str(folder / "speech"), "--device", "cpu", "-q", *more])
    return int(ended.value.code or 0)


def test_all_layouts_make_the_same_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = calls_of(monkeypatch)
    videos = []
    for layout, name in (
        ("torch", "weights.ckpt"),
        ("prefixed", "weights.safetensors"),
        ("flat", "weights.safetensors"),
    ):
        with caplog.at_level(logging.WARNING):
            assert command(folder, folder / layout / name, tmp_path / f"{layout}.mp4") == 0
        assert (
            "has audio weights alone: the face branch (identity) and the motion branch (omega) are off"
            in caplog.text
        )
        videos.append((tmp_path / f"{layout}.mp4").read_bytes())
    assert videos[0] == videos[1] == videos[2]
    images, fps = shown(tmp_path / "torch.mp4")
    assert (images.shape, fps) == ((7, 64, 64, 3), 23)
    # Three passes in one call: negative prompt, empty prompt, and with audio.
    assert [len(one.text_BSD) for one in seen] == [3] * 6
    texts = seen[0].text_BSD
    assert not torch.equal(texts[0], texts[1]) and torch.equal(texts[1], texts[2])
    assert seen[0].audio_scale_B.tolist() == [0, 0, 1]
    assert seen[0].identity_BD is None and seen[0].omega_B2 is None
    assert seen[0].image_BKD is not None and seen[0].image_BKD.any()


def test_the_weights_are_those_of_the_file_and_reach_the_video(folder: Path, tmp_path: Path) -> None:
    weights = folder / "torch" / "weights.ckpt"
    state = torch.load(weights, weights_only=True)
    source = Source(None, str(folder / "base"), weights, str(folder / "speech"))
    model = GenerationPipeline.load(source, "cpu").model
    assert torch.equal(model.audio_proj.proj.weight, state["proj_model"]["proj.weight"])
    for layer in (0, LAYERS - 1):
        expected = state["audio_processor"][f"blocks.{layer}.cross_attn.processor.v_proj.weight"]
        assert torch.equal(model.transformer.blocks[layer].attn2.processor.v_proj.weight, expected)
    assert model.face is None and model.motion is None and model.window_positions is None
    assert command(folder, weights, tmp_path / "heard.mp4") == 0
    assert command(folder, weights, tmp_path / "deaf.mp4", "--audio-cfg", "0") == 0
    assert (tmp_path / "heard.mp4").read_bytes() != (tmp_path / "deaf.mp4").read_bytes()


def test_the_text_encoder_is_gone_before_the_model_computes(folder: Path) -> None:
    source = Source(
        None, str(folder / "base"), folder / "flat" / "weights.safetensors", str(folder / "speech")
    )
    found = GenerationPipeline.load(source, "cpu", prompts=["a person"])
    negative = found.config.sample.negative_prompt
    assert negative.startswith("人物静止不动")
    texts = found.encoders.text.encode(["a person", "", negative])
    assert texts.shape == (3, 512, TEXT_DIM) and not torch.equal(texts[0], texts[1])
    assert not [value for value in vars(found.encoders.text).values() if isinstance(value, torch.nn.Module)]
    assert isinstance(found.model, TalkingWan)


def test_the_text_encoder_waits_in_main_memory_where_prompts_are_not_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the studio. It stays beside the transformer only where nothing is offloaded."""
    moved: list[torch.device] = []
    monkeypatch.setattr(Umt5, "to", lambda _, device: moved.append(device))
    weights = folder / "flat" / "weights.safetensors"
    source = Source(None, str(folder / "base"), weights, str(folder / "speech"))
    for offload in ("none", "model"):
        found = GenerationPipeline.load(source, "cpu", Savings(offload=offload))
        assert isinstance(found.encoders.text, Umt5)
        assert moved == ([] if offload == "none" else [torch.device("cpu")])


@pytest.mark.parametrize(
    ("break_it", "message"),
    (
        (
            "width",
            "does not fit the model: of another shape transformer.blocks.0.attn2.processor.k_proj.weight",
        ),
        ("depth", "does not fit the model: missing transformer.blocks.39.attn2.processor.k_proj.weight"),
        ("pickle", "expected a torch file of tensors, found"),
        ("speech", "speech: expected width 24, found 16"),
        ("base", "model.base nowhere: expected 'random', a folder that exists, or a hub name"),
        ("wan2.2", "expected a Wan 2.1 model, found Wan2.2-A14B, whose two transformers"),
        ("omega", "--omega-face 0.9: has no effect, the model has no motion branch"),
        ("empty", "expected safetensors, found"),
    ),
)
def test_weights_that_do_not_fit_are_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: str, message: str
) -> None:
    base, weights, more = folder / "base", folder / "torch" / "weights.ckpt", []
    if break_it in ("width", "depth", "speech"):
        sizes = {"width": (LAYERS, 12, AUDIO, SPEECH), "depth": (39, INNER, AUDIO, SPEECH)}
        weights = write(tmp_path, "torch", published(*sizes.get(break_it, (LAYERS, INNER, AUDIO, 24))))
    elif break_it == "pickle":
        weights = tmp_path / "evil.ckpt"
        torch.save({"proj_model": Path("x")}, weights)
    elif break_it == "empty":
        weights = tmp_path / "empty.safetensors"
        weights.write_bytes(b"")
    elif break_it == "base":
        base = Path("nowhere")
    elif break_it == "omega":
        more = ["--omega-face", "0.9"]
    else:
        base = tmp_path / "two"
        base.mkdir()
        for part in (folder / "base").iterdir():
            (base / part.name).symlink_to(part)
        index = {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9}
        (base / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("generate", "--base", str(base), "--adapters", str(weights), "-o", str(tmp_path / "o.mp4")),
                *("--image", str(folder / "face.png"), "--audio", str(folder / "words.wav"), "-q"),
                *("--speech-model", str(folder / "speech"), "--device", "cpu", *more),
            ]
        )
    found = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and message in found[-1]
    assert [line for line in found if line.startswith("talkforge:")] == found[-1:]
    assert not (tmp_path / "o.mp4").exists()
