"""Measure and draw the loss landscape of any PyTorch model."""
