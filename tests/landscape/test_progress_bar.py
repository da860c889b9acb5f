"""Bars appear on a terminal, on the first rank, and nowhere else."""

import io
import sys

import pytest

from landscape.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "rank", "shown"), [(Terminal(), "0", True), (Terminal(), "1", False), (io.StringIO(), "0", False)])
def test_only_on_the_terminal_of_the_first_rank(monkeypatch, stream, rank, shown):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("RANK", rank)
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert ("counting" in stream.getvalue()) == shown


def test_a_bar_by_hand(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(10, "products", "product", show=True) as bar:
        bar.update()
        assert bar.total == 10 and bar.n == 1
    with progress(None, "products", show=False) as bar:
        bar.update()
