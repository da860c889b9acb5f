"""SAMPa really in parallel, and data parallelism for the rest of the family."""

from sam_core.parallel.replicas import ReplicasDifferError, share_buffers
from sam_core.parallel.roles import RankLostError, Roles, start
from sam_core.parallel.sampa import ParallelSAMPa
from sam_core.parallel.streams import StreamedSAMPa

__all__ = ["ParallelSAMPa", "RankLostError", "ReplicasDifferError", "Roles", "StreamedSAMPa", "share_buffers", "start"]
