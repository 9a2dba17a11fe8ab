"""Folders and hub names: one probe, one line, and nothing asked of the network that nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from talkforge.curation.weights import hub
from talkforge.schemas.errors import ModelError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names that the hub was asked for; the network is down."""
    names: list[str] = []

    def model_info(_: Any, name: str, *, timeout: float) -> None:
        assert timeout == hub.PROBE_TIMEOUT_S
        names.append(name)
        raise OfflineModeIsEnabled("no network here")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    hub._probe.cache_clear()
    yield names
    hub._probe.cache_clear()


def test_a_folder_is_never_looked_for_on_the_hub(asked: list[str], tmp_path: Path) -> None:
    assert hub.is_local(str(tmp_path), "config.json", "captioner")
    assert asked == []


@pytest.mark.parametrize(
    "name", ("random", "~/models/wan", "/models/wan", "./wan/x", "a/b/c", "wan", "", "a b/c")
)
def test_what_is_no_hub_name_is_never_looked_for_there(asked: list[str], name: str) -> None:
    with pytest.raises(ModelError) as caught:
        hub.is_local(name, "config.json", "model.base", "'random'")
    assert str(caught.value) == (
        f"model.base {name}: expected 'random', a folder that exists, or a hub name such as owner/name"
    )
    assert asked == []


def test_a_hub_that_cannot_be_reached_is_asked_once(asked: list[str]) -> None:
    for file in ("vae/config.json", "transformer/config.json"):
        with pytest.raises(ModelError) as caught:
            hub.is_local("nobody/wan", file, "model.base")
        assert str(caught.value) == (
            "model.base nobody/wan: no such folder here, and the hub cannot be reached (no network here)"
        )
    assert asked == ["nobody/wan"]


def test_a_cached_model_is_loaded_without_the_hub(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cached(name: str, file: str) -> str | None:
        return str(tmp_path / file) if (name, file) == ("nobody/wan", "vae/config.json") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert hub.is_local("nobody/wan", "vae/config.json", "model.base")
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        hub.is_local("nobody/wan", "transformer/config.json", "model.base")
    assert asked == ["nobody/wan"]


@pytest.mark.parametrize(
    ("status", "words"),
    ((401, "no such public model there"), (403, "it may not be read"), (404, "no such model there")),
)
@pytest.mark.usefixtures("asked")
def test_a_mistyped_name(monkeypatch: pytest.MonkeyPatch, status: int, words: str) -> None:
    def refused(*_: Any, **__: Any) -> None:
        request = httpx2.Request("GET", "http://hub.invalid/api/models/nobody/wann")
        raise HfHubHTTPError("a long page", response=httpx2.Response(status, request=request))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refused)
    with pytest.raises(ModelError) as caught:
        hub.is_local("nobody/wann", "config.json", "captioner")
    assert str(caught.value) == (
        f"captioner nobody/wann: no such folder here, and the hub answers {status} ({words})"
    )


@pytest.mark.usefixtures("asked")
def test_a_model_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: object())
    assert not hub.is_local("nobody/wan", "config.json", "captioner")
