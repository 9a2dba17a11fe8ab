"""Every test of the trainer runs alike everywhere: on the CPU, on one thread, unless it asks for a GPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """For what a module makes before its first test: threads wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.set_num_threads(1)
