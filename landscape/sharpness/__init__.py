"""Sharpness measures, one file each, and the table of all of them."""

from landscape.sharpness.all_measures import Choices, chosen, measure_all, table
from landscape.sharpness.average_case import average_case
from landscape.sharpness.fisher_trace import fisher_trace
from landscape.sharpness.gradient_norm import gradient_norm
from landscape.sharpness.keskar import keskar
from landscape.sharpness.low_pass import low_pass
from landscape.sharpness.m_sharpness import m_sharpness
from landscape.sharpness.paired import paired_difference
from landscape.sharpness.relative_flatness import relative_flatness
from landscape.sharpness.sam_gap import sam_gap
from landscape.sharpness.worst_case import worst_case

__all__ = [
    "Choices",
    "average_case",
    "chosen",
    "fisher_trace",
    "gradient_norm",
    "keskar",
    "low_pass",
    "m_sharpness",
    "measure_all",
    "paired_difference",
    "relative_flatness",
    "sam_gap",
    "table",
    "worst_case",
]
