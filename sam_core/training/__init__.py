"""Training: configuration, loop with hooks, checkpoints."""

from sam_core.training.checkpoint import Checkpoint, load_checkpoint, load_into, load_model, save_checkpoint
from sam_core.training.config import TrainConfig
from sam_core.training.evaluation import DivergedError, EpochRecord, evaluate
from sam_core.training.hooks import Hook
from sam_core.training.loop import Trainer
from sam_core.training.run import TrainResult, build_data, build_model, build_optimizer, build_trainer, train

__all__ = [
    "Checkpoint",
    "DivergedError",
    "EpochRecord",
    "Hook",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "build_data",
    "build_model",
    "build_optimizer",
    "build_trainer",
    "evaluate",
    "load_checkpoint",
    "load_into",
    "load_model",
    "save_checkpoint",
    "train",
]
