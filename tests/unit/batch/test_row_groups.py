from __future__ import annotations

import numpy as np

from headrace.batch.merging import Batch
from headrace.batch.row_groups import RowGroups
from headrace.domain.inference import InferRequest
from headrace.domain.tensors import InferContent, Tensor
from headrace.ports.rows import Row


class House:
    """Groups, the rows that are put there, and a portion that a test changes."""

    def __init__(self, *, limit: int = 8, portion: int = 8) -> None:
        self.portion = portion
        self.asked: list[tuple[str, str]] = []
        self.groups = RowGroups(
            self._mergeable, lambda most: min(most, self.portion), max_request_bytes=1000
        )
        self._limit = limit
        self._place = 0

    def _mergeable(self, model: str, version: str) -> int:
        self.asked.append((model, version))
        return self._limit

    def add(self, width: int = 1, *, length: int = 1, size_bytes: int = 10) -> list[int] | None:
        """Places of the batch that is full, if one is."""
        array = np.zeros((length, width), np.float32)
        content = InferContent([Tensor("x", "FP32", array)])
        request = InferRequest("m", "1", None, content)
        row = Row(str(self._place), request)
        full = self.groups.add(self._place, row, request, size_bytes)
        self._place += 1
        return None if full is None else full.places

    def rest(self) -> list[list[int]]:
        rest: list[Batch] = []
        while self.groups:
            rest.append(self.groups.pop())
        return [batch.places for batch in rest]


def test_rows_that_are_alike_fill_a_batch_and_others_wait_for_their_like() -> None:
    house = House(limit=3)
    assert [house.add(width) for width in (1, 2, 1, 1, 2)] == [None, None, None, [0, 2, 3], None]
    assert house.groups.first_place == 1
    assert house.rest() == [[1, 4]]
    assert house.groups.first_place == -1


def test_what_would_be_too_long_together_is_sent_before() -> None:
    house = House(limit=4)
    assert [house.add(length=length) for length in (2, 1, 2)] == [None, None, [0, 1]]
    assert house.rest() == [[2]]


def test_a_row_as_long_as_a_batch_goes_alone() -> None:
    house = House(limit=4)
    assert house.add(length=4) == [0]
    assert house.add(length=9) == [1]


def test_many_bytes_fill_a_batch() -> None:
    house = House()
    assert [house.add(size_bytes=600) for _ in range(2)] == [None, [0, 1]]


def test_a_portion_that_becomes_smaller_holds_from_the_next_row_on() -> None:
    house = House(portion=8)
    assert [house.add() for _ in range(5)] == [None] * 5
    house.portion = 3
    assert house.add() == [0, 1, 2, 3, 4]
    assert [house.add(), house.add()] == [None, [5, 6, 7]]
    house.portion = 1
    assert house.add() == [8]


def test_models_are_asked_once_how_much_may_be_merged() -> None:
    house = House()
    for _ in range(5):
        house.add()
    assert house.asked == [("m", "1")]
