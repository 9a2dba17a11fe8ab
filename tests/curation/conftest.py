"""Fixtures of the tests of what is measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from talkforge.curation.weights import download
from tests.curation.web_server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server, without pauses between tries, and without any proxy to it."""
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()
