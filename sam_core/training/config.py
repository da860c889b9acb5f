"""What a training run is: one frozen record. The text under a field is its help on the command line."""

import ast
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch

from sam_core import data as datasets
from sam_core import models
from sam_core.optim import Momentum, SAMPa, SharpnessAware, Trajectory, make, methods
from sam_core.optim.registry import registered
from sam_core.ranks import started_as_group

# Fields that may differ between a run and its continuation: they decide where and how often, not what.
FREE_TO_CHANGE = frozenset({"data_dir", "device", "devices", "timeout", "checkpoint_every", "checkpoint_steps", "keep_checkpoints"})

_LARGEST = torch.finfo(torch.float32).max

_OBJECTS = ("model", "schedule", "only", "ascent", "layers", "criterion", "scaler")  # arguments of methods that no text can give


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, and how."""

    method: str = "sam"
    """The method: none, sam, asam, msam, gsam, gnp, wsam, fsam, vasso, sam-db, looksam, interval, aesam, optsam, randsam,
    momentum-sam, sampa, sam-on, saf, mesa, esam, bisam, frob-sam, trace-sam, det-sam, ssam, stable-sam; sgd is none. `landscape
    methods` explains them."""
    rho: float | None = None
    """Radius of the climb; by default the method's own."""
    lam: float | None = None
    """Share of the second gradient in SAMPa's update, 0 to 1, by default 0.2; or `lam` of another method that has one (saf, mesa)."""
    m: int | None = None
    """Number of shards that every batch is cut into, for methods whose shards climb each by itself (msam); by default 4."""
    options: tuple[str, ...] = ()
    """Further options of the method, such as adaptive=true p=inf alpha=0.4, and of all methods, such as max_grad_norm=1 same_rng=true."""

    data: str = "digits"
    """The data: digits (nothing to download), cifar10, cifar100."""
    data_dir: Path | None = None
    """Folder with the files of the data set (CIFAR: the standard binary version)."""
    train_examples: int | None = None
    """Train with so many examples only; by default with all. The same ones in every run."""
    test_examples: int | None = None
    """Test with so many examples only; by default with all. The same ones in every run."""
    augment: bool = False
    """Augment the training images (CIFAR: random crops and mirror images)."""

    model: str = "small_cnn"
    """The network: small_cnn, mlp, resnet8, resnet20, resnet32, resnet56, vit_tiny."""
    model_options: tuple[str, ...] = ()
    """Options of the network, such as width=32."""

    epochs: int = 25
    """Passes over the training data."""
    batch_size: int = 64
    """Examples per step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The base optimizer, which makes the steps."""
    lr: float = 0.1
    """Learning rate at its highest."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov's momentum in sgd."""
    weight_decay: float = 5e-4
    """Weight decay of the base optimizer; it takes no part in the climb, unless --options decay_in_ascent=true."""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Learning rate over time: cosine to zero, constant, or step (a tenth after half and after three quarters of the epochs)."""
    warmup_epochs: float = 0.0
    """Let the learning rate rise from zero over so many epochs."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, 0 to 1; in training only."""

    seed: int = 0
    """Decides initial weights, order of the data, augmentation and dropout; the same for every method."""
    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1, or auto for a GPU if there is one."""
    devices: str | None = None
    """Train on several devices, a process each: cuda:0,cuda:1 or cpu,cpu. SAMPa takes its two gradients at the same time (on 2N devices
    with data parallelism; cuda:0,cuda:0: on two streams of one GPU); every other method divides the batches among them (msam: a device
    is a shard)."""
    timeout: float = 120.0
    """With several processes: seconds after which one that does not answer counts as lost."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between further checkpoints inside an epoch, for long epochs; by default none."""
    keep_checkpoints: bool = False
    """Keep the checkpoint of every epoch saved, not only the latest."""

    def __post_init__(self) -> None:
        """Check everything that can be checked without reading data: a wrong value is a ValueError that says what is allowed."""
        if registered(self.method) != "none":  # the optimizer alone has names that say more
            object.__setattr__(self, "method", registered(self.method))
        for name in ("options", "model_options"):
            object.__setattr__(self, name, _as_texts(name, getattr(self, name)))
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", Path(self.data_dir))
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("checkpoint_every", 1)):
            _whole(name, getattr(self, name), least)
        for name in ("m", "train_examples", "test_examples", "checkpoint_steps"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        for name, end in (
            ("lr", math.inf),
            ("momentum", 1),
            ("weight_decay", math.inf),
            ("warmup_epochs", math.inf),
            ("label_smoothing", 1),
            ("timeout", math.inf),
        ):
            value, open_ = getattr(self, name), name in ("lr", "timeout")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < end or (open_ and not value):
                raise ValueError(f"{name} must be a number in {'(' if open_ else '['}0, {end}), not {value!r}")
            if value > _LARGEST:
                raise ValueError(f"{name} must be at most {_LARGEST:.3g}, not {value!r}")
        for name, allowed in (("optimizer", ("sgd", "adam", "adamw")), ("schedule", ("cosine", "constant", "step"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("augment", "nesterov", "keep_checkpoints"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov=True needs optimizer sgd with a momentum above 0")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs must be at most epochs={self.epochs}, not {self.warmup_epochs!r}")
        datasets.check(self.data, self.data_dir)
        if self.augment and self.data not in datasets.AUGMENTED:
            raise ValueError(f"augment: there is no standard augmentation for {self.data} (a mirrored digit is none), leave it out")
        _check_device(self.device)
        if self.devices is not None:
            _check_devices(self.devices, self.device)
        self._check_method()

    def _check_model(self) -> torch.nn.Module:
        """Build the network without numbers: what it refuses, it refuses now."""
        known = models.options(self.model)
        for name in self.network_options:
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise ValueError(f"model_options: model {self.model!r} has no option {name!r}: {has}")

        channels, size, classes = datasets.SHAPES[self.data]
        return models.make(self.model, classes, channels, image_size=size, device="meta", **self.network_options)

    def method_class(self) -> type[SharpnessAware]:
        """Return the class of the method, built around the network for a try: what it refuses, it refuses now."""
        return type(self._method_on_meta())

    def _method_on_meta(self) -> SharpnessAware:
        model = self._check_model()

        def build(name: str, base: torch.optim.Optimizer, **options: Any) -> SharpnessAware:
            if options.get("scope") == "local":  # needs a wrapper, which needs the processes: checked when they are there
                del options["scope"]
            return make(name, base, **options)

        return self.wrap(torch.optim.SGD(model.parameters(), lr=0.1), model, build=build)

    def _check_method(self) -> None:
        """Refuse a method that does not go with the rest."""
        method = self._method_on_meta()
        if self.one_gpu:
            if not isinstance(method, SAMPa):
                raise ValueError(
                    f"devices={self.devices!r}: method {self.method!r} has no two gradients to take at the same time; name it once"
                )
        elif self.devices is not None and not started_as_group():
            object.__setattr__(self, "m", self._shared_shards(method, len(self.devices.split(","))))
        if isinstance(method.ascent, Momentum) and self.optimizer == "sgd" and not self.momentum:
            raise ValueError(f"momentum must be above 0 for method {self.method!r}, which climbs against it, not {self.momentum!r}")
        if self.m is not None and not method.per_shard:
            raise ValueError(f"m={self.m} cuts batches into shards that climb each by itself; method {self.method!r} does not, use msam")
        if method.per_shard and self.shards > self.batch_size:
            raise ValueError(f"m={self.shards} shards need a batch_size of at least {self.shards}, not {self.batch_size}")

    def shared_among(self, count: int) -> Self:
        """Return the record of a run on so many processes, if they can share it; each is a shard where the method has shards."""
        return dataclasses.replace(self, devices=None, m=self._shared_shards(self._method_on_meta(), count))

    def _shared_shards(self, method: SharpnessAware, count: int) -> int | None:
        """Refuse what several processes cannot share, and return m."""
        if isinstance(method, SAMPa):
            if count % 2:
                raise ValueError(f"devices: SAMPa takes two gradients at the same time, which {count} devices cannot share equally")
            if self.method_options.get("scope") == "local":
                raise ValueError(
                    "options: scope=local: SAMPa carries grad f(y) from step to step, which would differ from process to process"
                )
            if method.per_shard:
                raise ValueError("devices: SAMPa with per_shard=true climbs several times in a step: use one device")
        elif method.per_shard:
            if self.m not in (None, count):
                raise ValueError(f"m={self.m} must be the number of devices, {count}, each of which is a shard, or be left out")
            return count
        if isinstance(method.criterion, Trajectory):
            raise ValueError(f"devices: method {self.method!r} holds examples to their own past, which another process has seen")
        return self.m

    @property
    def one_gpu(self) -> bool:
        """Whether `devices` names one GPU twice: SAMPa takes its two gradients on two streams of it, in one process."""
        names = [] if self.devices is None else self.devices.split(",")
        return len(names) == 2 and names[0] == names[1] and names[0].startswith("cuda")

    @property
    def shards(self) -> int:
        """Number of shards for methods that climb by shard."""
        return 4 if self.m is None else self.m

    @property
    def method_options(self) -> dict[str, Any]:
        """All options of the method, as keywords."""
        texts = parse_options("options", self.options)
        named = {name: value for name in ("rho", "lam") if (value := getattr(self, name)) is not None}
        for name in texts:
            if name in named:
                raise ValueError(f"options: {name} is set twice, here and by the field {name}")
            if name == "m" or name in _OBJECTS:
                raise ValueError(f"options: {name} cannot be given here: " + ("set the field m" if name == "m" else "it is an object"))
        for name, value in (named | texts).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                most = 2**63 - 1 if isinstance(value, int) else _LARGEST
                if math.isfinite(value) and abs(value) > most:
                    raise ValueError(f"option {name} must be at most {most:.3g} in size, not {value!r}")
        return named | texts

    @property
    def network_options(self) -> dict[str, Any]:
        """All options of the network, as keywords."""
        return parse_options("model_options", self.model_options)

    def wrap(
        self,
        base: torch.optim.Optimizer,
        model: torch.nn.Module | None = None,
        total_steps: int | None = None,
        build: Callable[..., SharpnessAware] = make,
    ) -> SharpnessAware:
        """Return the method around a base optimizer.

        Args:
            base: the optimizer that makes the steps.
            model: its network, so that running statistics stay as they are in perturbed passes.
            total_steps: steps of the whole training, for methods that ask.
            build: makes the method from its name, `base` and the options.

        Returns:
            The method.

        Raises:
            ValueError: the method is unknown, or an option is, or has a value that is not allowed.
        """
        options = self.method_options
        cls = type(make(self.method, base, model=model))
        arguments = {**inspect.signature(SharpnessAware).parameters, **inspect.signature(cls).parameters}
        known = next(info.arguments for info in methods().values() if info.cls is cls)
        taken = [name for name in known if name not in _OBJECTS]
        for name, value in options.items():
            if name not in taken:
                raise ValueError(f"method {self.method!r} has no option {name!r}: it has {', '.join(taken)}")
            if isinstance(arguments[name].default, bool) and not isinstance(value, bool):
                raise ValueError(f"option {name} of method {self.method!r} must be true or false, not {value!r}")
        if "seed" in taken:
            options.setdefault("seed", self.seed)
        if "total_steps" in taken:
            options.setdefault("total_steps", total_steps)
        try:
            return build(self.method, base, model=model, **options)
        except TypeError as error:
            raise ValueError(f"method {self.method!r}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers and texts."""
        fields = dataclasses.asdict(self)
        fields["data_dir"] = None if self.data_dir is None else str(self.data_dir)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return the record that `to_dict()` wrote.

        Args:
            fields: value by name; a field that is not there has its default.

        Returns:
            The record.

        Raises:
            ValueError: there is a field that this version does not know, or a value is not allowed.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(str(name) for name in fields if name not in known)
        if unknown:
            raise ValueError(f"unknown fields {', '.join(unknown)}: written by a newer version?")
        return cls(**fields)


def resolve_device(text: str) -> torch.device:
    """Return the device that a text means; auto is a GPU if there is one.

    Args:
        text: cpu, cuda, cuda:N or auto.

    Returns:
        The device.

    Raises:
        ValueError: this machine has no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {text!r} is not there: this machine has {count or 'no'} CUDA device{'s' * (count != 1)}")
    return device


def parse_options(name: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """Turn key=value texts into keywords.

    Args:
        name: what to call the option in an error.
        texts: such as "p=inf", "adaptive=true", "hidden=(32, 16)"; what is no number, word or tuple stays a text.

    Returns:
        Value by key.

    Raises:
        ValueError: a text has another form, or a key comes twice.
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not sign or not key.isidentifier():
            raise ValueError(f"{name} must have the form key=value, not {text!r}")
        if key in parsed:
            raise ValueError(f"{name}: {key} is given twice")
        parsed[key] = _value(value.strip())
    return parsed


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return float(text) if text.lower().lstrip("+-") in ("inf", "infinity", "nan") else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _as_texts(name: str, options: Any) -> tuple[str, ...]:
    if isinstance(options, Mapping):
        return tuple(f"{key}={value}" for key, value in options.items())
    if isinstance(options, str) or not all(isinstance(text, str) for text in options):
        raise ValueError(f"{name} must be a list of texts like key=value, not {options!r}")
    return tuple(options)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        end = " and below 2^63" if isinstance(value, int) and value >= 2**63 else ""
        raise ValueError(f"{name} must be a whole number of at least {least}{end}, not {value!r}")


def _check_device(device: str) -> None:
    """Look at the text alone: a configuration may be read on another machine."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise ValueError(f"device must be cpu, cuda, cuda:N or auto, not {device!r}")


def _check_devices(devices: Any, device: str) -> None:
    """Look at the text alone, too."""
    names = devices.split(",") if isinstance(devices, str) else []
    kinds = {name.partition(":")[0] for name in names}
    if len(names) < 2 or len(kinds) > 1 or not all(re.fullmatch(r"cpu|cuda:\d{1,3}", name) for name in names):
        raise ValueError(f"devices must be at least two of a kind, like cuda:0,cuda:1 or cpu,cpu, not {devices!r}")
    if kinds == {"cuda"} and len(set(names)) < len(names) and len(names) > 2:
        raise ValueError(f"devices: {devices!r} names a GPU twice, on which two processes would be slower than one")
    if device != "auto":
        raise ValueError(f"device={device!r} and devices={devices!r} exclude each other")
