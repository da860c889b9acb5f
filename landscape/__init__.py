"""Measure and draw the loss landscape of any PyTorch model."""

from landscape.results.store import open as open
