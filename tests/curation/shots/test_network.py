"""Which transitions of a network are added to the known cuts, and which repeat them."""

from __future__ import annotations

import numpy as np
import pytest

from talkforge.curation.shots import network
from talkforge.curation.shots.jumps import Cut
from talkforge.curation.shots.network import Transition, TransitionDetector


class Marks:
    """Says of the frames that it was told that a shot ends with them."""

    def __init__(self, *marked: int) -> None:
        self.marked = marked

    def boundaries(self, frames: np.ndarray) -> np.ndarray:
        found = np.zeros(len(frames), np.float32)
        found[list(self.marked)] = 1
        return found


def added(marked: list[int], known: list[int]) -> list[tuple[int, float, str]]:
    detector = TransitionDetector(Marks(*marked))
    for number in range(100):
        detector.push(10 + number / 25, np.full((64, 128, 3), number, np.uint8))
    cuts = detector.finish([Cut(frame, 10 + frame / 25, "picture") for frame in known])
    assert [cut.frame for cut in cuts] == sorted(cut.frame for cut in cuts)
    return [(cut.frame, cut.time_s, cut.opened_by) for cut in cuts if cut.frame not in known]


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([], ()),
        ([3], (Transition(3, 4),)),
        ([0, 5, 6, 7], (Transition(0, 1), Transition(5, 8))),
        ([8, 9], ()),
        (range(10), ()),
    ],
    ids=["none", "a cut", "a cut and a dissolve", "reaches the end", "throughout"],
)
def test_a_run_of_marked_frames_is_a_transition(above: list[int], expected: tuple[Transition, ...]) -> None:
    probabilities = np.zeros(10, np.float32)
    probabilities[list(above)] = 0.6
    assert network.transitions(probabilities) == expected
    assert network.transitions(probabilities, threshold=0.6) == ()


def test_a_cut_that_only_the_network_finds_is_added() -> None:
    assert added([49], []) == [(50, 12.0, "transnet")]
    assert added([49], [20, 80]) == [(50, 12.0, "transnet")]


def test_a_cut_that_was_found_already_is_not_added_twice() -> None:
    assert added([49], [50]) == []
    assert added([49], [38]) == added([49], [62]) == []
    assert added([49], [37]) == added([49], [63]) == [(50, 12.0, "transnet")]


def test_a_dissolve_is_cut_at_both_ends_whatever_was_found_inside() -> None:
    ends = [(41, 11.64, "transnet"), (50, 12.0, "transnet")]
    dissolve = list(range(40, 50))
    assert added(dissolve, []) == added(dissolve, [45]) == ends
    assert added(dissolve, [50]) == ends[:1]


def test_without_frames_there_are_no_cuts() -> None:
    assert TransitionDetector(Marks()).finish([]) == ()
