"""Curvature: operators and what is computed from their products."""
