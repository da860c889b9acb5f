"""Sharpness measures, one file each."""
