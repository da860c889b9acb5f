"""From a configuration to a trained model."""

import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam_core import data as datasets
from sam_core import models
from sam_core.data import Data, Loader
from sam_core.ranks import leads, started_as_group
from sam_core.training.alone import Alone
from sam_core.training.checkpoint import LATEST, Checkpoint, load_checkpoint, load_into, one_line, only_writer, same_run, save_checkpoint
from sam_core.training.config import FREE_TO_CHANGE, TrainConfig, resolve_device
from sam_core.training.evaluation import EpochRecord
from sam_core.training.hooks import Hook
from sam_core.training.loop import Trainer

_TEST_BATCH = 256


@dataclass(frozen=True)
class TrainResult:
    """What training gave."""

    model: nn.Module  # as it is at the end, in evaluation mode, on the device it was trained on
    history: tuple[EpochRecord, ...]
    config: TrainConfig
    data: Data
    checkpoint: Path | None
    resumed_from: int | None  # the step a continued run went on from
    leads: bool = True  # this process is the only one, or the first of several

    def __repr__(self) -> str:
        what = f"{self.config.method}, {self.config.model} on {self.config.data}"
        last = self.history[-1]
        return f"<TrainResult {what}: {last}, {last.seconds:.1f} s, {last.gradients_computed:,.0f} gradients>"


def train(
    config: TrainConfig,
    hooks: Sequence[Hook] = (),
    out: str | Path | None = None,
    resume: bool = False,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a model from scratch, or go on with a run. The global random generators are afterwards what they were.

    With `config.devices` this process is the first of several and starts the others; under `torchrun` every process calls. Each returns
    the same model and history, the first one alone writes and calls the hooks. A process that dies, or does not answer for
    `config.timeout` seconds (because of a long hook, say), ends the run with a `sam_core.parallel.RankLostError`.

    Args:
        config: what to train.
        hooks: called by the loop, see `Hook`.
        out: folder for checkpoints (`checkpoint.pt` is the latest finished one); None for none.
        resume: go on from the checkpoint in `out`, to the same bits as without the interruption.
        overwrite: replace a run that is in `out` already.
        progress: show a progress bar with the time left, if stderr is a terminal.

    Returns:
        The trained model, the history, the data.

    Raises:
        ValueError: the data cannot be read, `out` holds another run, the loss diverges, or an argument is not allowed.
    """
    if resume and out is None:
        raise ValueError("resume=True needs out, the folder of the run to go on with")
    if resume and overwrite:
        raise ValueError("resume=True and overwrite=True exclude each other")
    together = (config.devices is not None and not config.one_gpu) or started_as_group()
    if together:
        from sam_core.parallel import team as parallel  # half a second that one process can do without

        config, place = parallel.prepared(config)
    with ExitStack() as stack:
        folder = None if out is None or not leads() else Path(out)
        if resume and folder is not None and not (folder / LATEST).exists():  # killed before its first checkpoint, or a slip of the pen
            print(f"nothing to resume in {folder}: a new run begins there", file=sys.stderr)
        saved = None
        if folder is not None and folder.exists():
            saved = _enter(folder, stack, config, resume, overwrite)
            entered = True
        else:
            entered = False  # a folder is made when it is clear that there is something to put into it
        data = build_data(config)
        if together:
            team: Alone = stack.enter_context(parallel.assembled(config, place, data, out, resume))
        else:
            team = Alone(resolve_device(config.devices.split(",")[0] if config.devices else config.device))
        stack.enter_context(_own_randomness(config.seed, team.device))
        model = build_model(config, data).to(team.device)
        run = build_trainer(config, model, data, hooks=hooks, progress=progress, team=team)
        save = None
        if folder is not None and not entered:
            saved = _enter(folder, stack, config, resume, overwrite)
        if resume:
            saved = team.hand_on(saved)
        fingerprint = data.train.sha256() if together or out is not None else ""
        team.agree(fingerprint)
        if out is not None:
            if saved is not None:
                _continue(run, saved, fingerprint)
            save = _nothing if folder is None else _saver(folder, config, _network(config, data), fingerprint)
            if folder is not None and saved is None:
                for old in folder.glob("epoch_*.pt"):  # of the run that is overwritten
                    if re.fullmatch(r"epoch_\d{4,}\.pt", old.name):
                        old.unlink()
                save(run)  # shows at once whether the folder can be written to
        run.fit(save, config.checkpoint_steps)
    checkpoint = None if folder is None else folder / LATEST
    return TrainResult(model.eval(), tuple(run.history), config, data, checkpoint, None if saved is None else saved.step, team.leads)


def _nothing(run: Trainer) -> None:
    """Leave saving to the first process."""


def build_data(config: TrainConfig) -> Data:
    """Load the data of a configuration, with as many examples as it says."""
    data = datasets.load(config.data, config.data_dir)
    return replace(
        data,
        train=data.train.take(config.train_examples, "train_examples"),
        test=data.test.take(config.test_examples, "test_examples"),
    )


def build_model(config: TrainConfig, data: Data) -> nn.Module:
    """Build the network of a configuration with its initial weights, which depend on the seed alone and not on the method."""
    return models.make(**_network(config, data), seed=config.seed)  # a ValueError also if it does not fit into memory


def build_optimizer(config: TrainConfig, model: nn.Module, total_steps: int | None = None, team: Alone | None = None) -> Any:
    """Build the method of a configuration around its base optimizer; `total_steps` of the training, for methods that ask."""
    base: Optimizer
    named = model.named_parameters()  # names tell ASAM what a bias is
    if config.optimizer == "sgd":
        base = SGD(named, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov)
    else:
        base = {"adam": Adam, "adamw": AdamW}[config.optimizer](named, lr=config.lr, weight_decay=config.weight_decay)
    return config.wrap(base, model, total_steps) if team is None else team.method(config, base, model, total_steps)


def build_trainer(
    config: TrainConfig, model: nn.Module, data: Data, *, hooks: Sequence[Hook] = (), progress: bool = True, team: Alone | None = None
) -> Trainer:
    """Build the trainer of a configuration.

    Args:
        config: what to train.
        model: the network, on its device.
        data: the data.
        hooks: called by the loop.
        progress: show a bar.
        team: the processes that train together.

    Returns:
        The trainer, before its first step.

    Raises:
        ValueError: the last batch is too small for the method's shards.
    """
    device = next(model.parameters()).device
    team = Alone(device) if team is None else team
    augmentation = data.augmentation if config.augment else None
    place: dict[str, Any] = {"device": device, "channels_last": device.type == "cpu"}
    train_loader = Loader(data.train, config.batch_size, augmentation=augmentation, seed=config.seed, **place)
    test_loader = Loader(data.test, _TEST_BATCH, shuffle=False, **place)
    optimizer = build_optimizer(config, model, config.epochs * len(train_loader), team)
    smallest = len(data.train) % config.batch_size or config.batch_size
    if optimizer.per_shard and optimizer.takes_next_batch and smallest < config.shards:
        raise ValueError(
            f"batch_size={config.batch_size} leaves a last batch of {smallest} examples, and every batch must give m={config.shards} shards"
        )
    factor = learning_rate_factor(config, len(train_loader))
    return Trainer(
        model,
        optimizer,
        train_loader,
        test_loader,
        epochs=config.epochs,
        loss=partial(F.cross_entropy, label_smoothing=config.label_smoothing),
        scheduler=LambdaLR(optimizer.base, factor),
        shards=team.shards(config) if optimizer.per_shard else None,
        hooks=hooks,
        team=team,
        label=config.method,
        progress=progress,
    )


def learning_rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step, from 0."""
    total, warmup = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if config.schedule == "cosine":
            return rise * (1 + math.cos(math.pi * min(1.0, step / total))) / 2
        if config.schedule == "step":
            return rise * 0.1 ** ((step >= 0.5 * total) + (step >= 0.75 * total))
        return rise

    return factor


def _network(config: TrainConfig, data: Data) -> dict[str, Any]:
    """Return the arguments of `models.make`."""
    own = {"num_classes": data.num_classes, "in_channels": data.in_channels, "image_size": data.image_size}
    return {"name": config.model, **own, **config.network_options}


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators (dropout draws from them) and make cuDNN repeatable; put everything back on leaving."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before


def _enter(folder: Path, stack: ExitStack, config: TrainConfig, resume: bool, overwrite: bool) -> Checkpoint | None:
    """Lock the folder, and return the run in it that is to be continued."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"out must be a folder, and {folder} is, or lies in, a file") from None
    stack.enter_context(only_writer(folder))
    return _saved_run(folder, config, resume) if (folder / LATEST).exists() and not overwrite else None


def _saved_run(folder: Path, config: TrainConfig, resume: bool) -> Checkpoint | None:
    """Return the run in a folder if it may be continued as `config` says."""
    saved = load_checkpoint(folder)
    state = f"a run of {saved.config.method} with {saved.epoch} of {saved.config.epochs} epochs done"
    differences = same_run(saved.config, config, FREE_TO_CHANGE)
    if saved.step == 0 and (differences or not resume):  # nothing is lost
        return None
    if not resume:
        raise ValueError(
            f"{folder} holds {state}: "
            "go on with it (--resume, resume=True), replace it (--overwrite, overwrite=True), or choose another folder"
        )
    if differences:
        raise ValueError(
            f"{folder} holds another run than the one to resume: {'; '.join(differences)}; "
            "start anew with --overwrite (overwrite=True) or choose another folder"
        )
    return saved


def _continue(run: Trainer, saved: Checkpoint, fingerprint: str) -> None:
    """Put all states of a checkpoint into a fresh trainer."""
    if fingerprint != saved.data_sha256:
        raise ValueError(f"{saved.path} was trained with other training data than those there are now: restore them, or start anew")
    load_into(run.model, saved.model.state_dict(), str(saved.path), "the model")
    try:
        rates = list(run.scheduler.base_lrs) if run.scheduler is not None else []
        run.load_state_dict(saved.training if run.team.leads else {**saved.training, "hooks": []})
        if run.scheduler is not None and (run.scheduler.last_epoch != run.step or list(run.scheduler.base_lrs) != rates):
            raise ValueError("its learning-rate schedule is not that of the step it was saved in")
        if run.optimizer.steps != run.step:
            raise ValueError(f"its optimizer made {run.optimizer.steps} steps, the run {run.step}")
    except Exception as error:  # a damaged state can make its readers raise anything
        raise ValueError(f"{saved.path} does not fit this run: {one_line(error)}") from None


def _saver(folder: Path, config: TrainConfig, network: dict[str, Any], fingerprint: str) -> Callable[[Trainer], None]:
    def save(run: Trainer) -> None:
        epochs = len(run.history)
        at_epoch_end = run.step == epochs * run.steps_per_epoch
        last = epochs == run.epochs
        if at_epoch_end and epochs % config.checkpoint_every and not last:
            return
        path = folder / LATEST
        save_checkpoint(path, config=config, network=network, model=run.model, training=run.state_dict(), data_sha256=fingerprint)
        if config.keep_checkpoints and at_epoch_end:
            kept = folder / f"epoch_{epochs:04d}.pt"
            partial_copy = kept.with_name(f".{LATEST}.{os.getpid()}.partial")
            shutil.copyfile(path, partial_copy)
            os.replace(partial_copy, kept)

    return save
