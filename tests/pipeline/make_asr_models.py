"""Small models with random weights for WhisperX to align and tell voices apart by, made in its own
environment: `python make_asr_models.py FOLDER`. They know nothing, but are loaded and run as true ones."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import XVectorSincNet
from pyannote.audio.models.segmentation import PyanNet
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]

PIPELINE = """
version: 4.0.0
pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: AgglomerativeClustering
    segmentation: $model/segmentation
    embedding: $model/embedding
    plda: $model/plda
params:
  clustering: {method: centroid, min_cluster_size: 1, threshold: 0.7}
  segmentation: {min_duration_off: 0.0}
"""


def make_aligner(folder):
    folder.mkdir()
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: n for n, letter in enumerate(LETTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)


def make_voices(folder):
    lstm = {"hidden_size": 8, "num_layers": 1, "bidirectional": True, "monolithic": True}
    frames = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION, resolution=Resolution.FRAME, duration=5.0,
        classes=["a", "b"], powerset_max_classes=2, permutation_invariant=True,
    )  # fmt: skip
    save(PyanNet(lstm=lstm, linear={"hidden_size": 8, "num_layers": 1}), frames, folder / "segmentation")
    chunks = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=2.0, classes=["a", "b"]
    )
    save(XVectorSincNet(dimension=16), chunks, folder / "embedding")
    (folder / "plda").mkdir()
    lda = np.random.default_rng(0).normal(size=(16, 8))
    np.savez(folder / "plda/xvec_transform.npz", mean1=np.zeros(16), mean2=np.zeros(8), lda=lda)
    np.savez(folder / "plda/plda.npz", mu=np.zeros(8), tr=np.eye(8), psi=np.linspace(2, 1, 8))
    (folder / "config.yaml").write_text(PIPELINE)


def save(model, specifications, folder):
    model.specifications = specifications
    model.build()
    model.setup()
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    checkpoint["pytorch-lightning_version"] = "2.6.0"
    model.on_save_checkpoint(checkpoint)
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / "pytorch_model.bin")


def make_sentence_splitter(folder):
    """NLTK's Punkt with nothing learnt."""
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).touch()


torch.manual_seed(0)
here = Path(sys.argv[1])
make_aligner(here / "aligner")
make_voices(here / "voices")
make_sentence_splitter(here / "nltk/tokenizers/punkt_tab/english")
