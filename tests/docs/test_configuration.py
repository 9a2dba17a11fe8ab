"""The generated pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from docs.make_configuration import page, rejections_page, training_page
from talkforge.schemas.config import Config, load_config
from talkforge.training.config import TrainConfig, load_train_config

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_up_to_date() -> None:
    pages = {
        "configuration.md": page(),
        "training-configuration.md": training_page(),
        "rejections.md": rejections_page(),
    }
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run: python -m docs.make_configuration"


@pytest.mark.parametrize(
    ("text", "load", "defaults"),
    ((page(), load_config, Config()), (training_page(), load_train_config, TrainConfig())),
    ids=("curate", "train"),
)
def test_a_default_can_be_copied_from_the_page(text: str, load: Any, defaults: Any) -> None:
    values = re.findall(r"^\| `([a-z_0-9]+\.[a-z_0-9.]+)` \| `(?!measure\.)([^`]*)` \|", text, re.MULTILINE)
    assert len(values) > 60
    assert load(None, [f"{key}={value}" for key, value in values]) == defaults
