"""Tensors on disk, and the errors for those that do not fit."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from talkforge.schemas.errors import ModelError
from talkforge.training.run import tensor_files
from talkforge.training.run.tensor_files import (
    TensorFile,
    check_names,
    fill,
    listed,
    read_pickled,
    read_tensors,
    write_tensors,
)


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = {
        "a": torch.arange(6.0).view(2, 3).t(),  # not contiguous
        "b": torch.tensor(3.0),
        "c": torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
    }
    write_tensors(path, state)
    found = read_tensors(path)
    assert found.keys() == state.keys()
    assert all(
        torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state
    )
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "talkforge"}


def test_every_type_can_be_read_by_the_library(tmp_path: Path) -> None:
    """Of odd lengths, small types first: what follows must still begin at a multiple of its own size."""
    state = {f"{n}": torch.arange(3).to(dtype) for n, dtype in enumerate(reversed(tensor_files._DTYPES))}
    state |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(7, dtype=torch.int16)}
    write_tensors(tmp_path / "a.safetensors", state)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].float(), tensor.float()), tensor.dtype


def test_a_file_may_be_written_from_what_was_read_of_it(tmp_path: Path) -> None:
    """Its tensors lie in the file until they are used: to write into it would end the process (SIGBUS)."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.arange(1e6), "b": torch.ones(3)})
    write_tensors(path, {**read_tensors(path), "c": torch.zeros(1)})
    found = read_tensors(path)
    assert torch.equal(found["a"], torch.arange(1e6)) and set(found) == {"a", "b", "c"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_deferred_tensors_are_made_one_at_a_time_and_written_alike(tmp_path: Path) -> None:
    like = {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.zeros(2, 2), "c": torch.zeros(())}
    made: list[weakref.ref[torch.Tensor]] = []

    def make(tensor: torch.Tensor) -> torch.Tensor:
        assert not any(other() is not None for other in made[:-1])
        made.append(weakref.ref(found := tensor + 1))
        return found

    write_tensors(tmp_path / "late.safetensors", tensor_files.Deferred(like, make))
    write_tensors(tmp_path / "now.safetensors", {name: tensor + 1 for name, tensor in like.items()})
    assert len(made) == 3
    assert (tmp_path / "late.safetensors").read_bytes() == (tmp_path / "now.safetensors").read_bytes()

    made.clear()
    state = tensor_files.Deferred(like, make)
    assert list(state) == ["b", "c", "a"] and "a" in state and len(state) == 3
    with pytest.raises(KeyError, match="a: tensors are made in their order, each once"):
        state["a"]
    assert torch.equal(state["b"], torch.ones(2, 2))
    state.rest()
    assert len(made) == 3
    with pytest.raises(KeyError, match="b: tensors are made in their order, each once"):
        state["b"]


def test_parts_of_a_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = {"a.x": torch.arange(12.0).view(4, 3), "b": torch.tensor(3.0)}
    write_tensors(path, state)
    file = TensorFile(path, lambda name: name.replace("a.", "A."))
    assert set(file.names) == {"A.x", "b"}
    assert file.shape("A.x") == (4, 3) and file.shape("b") == ()
    assert torch.equal(file.whole("A.x"), state["a.x"]) and torch.equal(file.whole("b"), state["b"])
    assert torch.equal(file.rows("A.x", 1, 3), state["a.x"][1:3])
    assert file.rows("A.x", 4, 4).shape == (0, 3)
    for other in (tmp_path / "none", Path(__file__)):
        with pytest.raises(ModelError, match=f"^{other}: expected safetensors, found"):
            TensorFile(other)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(ModelError, match=r"a: expected safetensors, found .*No such file"):
        read_tensors(path)
    path.write_bytes(b"abc")
    with pytest.raises(ModelError, match="a: expected safetensors, found"):
        read_tensors(path)
    with pytest.raises(ModelError, match="a: expected a torch file of tensors, found"):
        read_pickled(path)


def test_nothing_is_copied_where_something_does_not_fit() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(ModelError, match=r"^file: does not fit the model: missing b$"):
        fill(expected, {"a": torch.ones(2)}, "file")
    assert not expected["a"].any()
    fill(expected, {"a": torch.ones(2), "b": torch.full((2,), 2.0)}, "file")
    assert expected["a"].tolist() == [1, 1] and expected["b"].tolist() == [2, 2]


def test_many_keys_are_counted() -> None:
    expected = {f"k{n}": torch.zeros(1) for n in range(9)}
    with pytest.raises(ModelError, match=r"missing k0, k1, k2, k3, k4, k5 and 3 more$"):
        check_names(expected, {}, "file")
    assert listed(["a", "b"]) == "a, b"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_of_tensors_has_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):  # new, and written again
            write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
            assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
