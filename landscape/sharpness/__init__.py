"""Sharpness measures, one file each."""

from landscape.sharpness.m_sharpness import m_sharpness

__all__ = ["m_sharpness"]
