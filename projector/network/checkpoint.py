"""What training leaves on storage: weights, description and resumable state, each object put whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn, optim

from projector.network.architectures import ProjectorNetwork, Shape
from shards.errors import NotFoundError, OversizeError, StorageError, UsageError
from shards.stores.store import MAX_RECORD, Storage, parse_json

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
EVALUATION = "eval.json"
STATE = "state.safetensors"
EMBEDDED = "projector"  # under this name a file's head holds what config.json does
MAX_HEADER = 8 << 20  # bytes that are read of a file's head; a projector's has some thousand


@dataclass
class TrainingProgress:
    """How far a run has come; everything but the tensors of its state."""

    epoch: int = 0
    """Epochs finished."""
    losses: list[float] = field(default_factory=list)
    """Loss sums of the steps already taken in the epoch under way."""
    best_epoch: int = 0
    """Epoch (from 1) with the best validation loss; 0 while nothing beats the start."""
    best_val_loss: float = float("inf")
    """That loss."""
    ridge_val_loss: float | None = None
    """What the closed form reaches on the same pairs; None where it was not asked."""
    seconds: float = 0.0
    """Time spent, over all attempts."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record per finished epoch: the lines of metrics.jsonl."""


def put_json(storage: Storage, key: str, content: Any) -> None:
    """Put a JSON file for people and programs."""
    storage.put_bytes(key, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def get_json(storage: Storage, key: str) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: it is missing or not JSON.
    """
    try:
        return parse_json(storage.get_bytes(key, MAX_RECORD))
    except NotFoundError:
        raise UsageError(
            f"{storage.root}: no projector there ({key} is missing); "
            "give the folder that training or export wrote"
        ) from None
    except (ValueError, OversizeError) as error:
        raise UsageError(f"{storage.root}/{key} is not JSON: {error}; train or export again") from None


def get_config(storage: Storage, weights: str = WEIGHTS) -> Any:
    """Read what describes a projector: config.json, or what a single file says of itself.

    Args:
        storage: the folder.
        weights: name of the weights; with another name than the usual one, or without a config.json beside them, they
            are a file by themselves.

    Raises:
        UsageError: there is no description, or it is not JSON.
    """
    if weights == WEIGHTS and (storage.stat(CONFIG) is not None or storage.stat(WEIGHTS) is None):
        return get_json(storage, CONFIG)
    where = f"{storage.root}/{weights}"
    try:
        length = int.from_bytes(storage.get_range(weights, 0, 8), "little")
        header = parse_json(storage.get_range(weights, 8, min(length, MAX_HEADER)))
        return parse_json(header["__metadata__"][EMBEDDED].encode())
    except (KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{where} holds no description of a projector; give the folder, or a file that `export` wrote"
        ) from None
    except (ValueError, StorageError) as error:
        raise UsageError(f"{where} is no safetensors file of a projector: {error}; export again") from None


def put_network(storage: Storage, network: ProjectorNetwork, config: Mapping[str, Any] | None = None) -> None:
    """Put the weights and the standardisation, on the CPU's layout whatever the device.

    Args:
        storage: the folder.
        network: its tensors are put.
        config: content of config.json, to go into the file's head, so that the file can be used by itself.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in network.state_dict().items()}
    head = {EMBEDDED: json.dumps(config, ensure_ascii=False)} if config is not None else None
    storage.put_bytes(WEIGHTS, safetensors.torch.save(tensors, metadata=head))


def get_network(storage: Storage, config: Mapping[str, Any], weights: str = WEIGHTS) -> ProjectorNetwork:
    """Build the network that config.json describes and load its weights.

    Args:
        storage: the folder.
        config: what `get_config` read.
        weights: name of the weights.

    Raises:
        UsageError: the weights are missing, damaged, or not those of the described network.
    """
    where = f"{storage.root}/{CONFIG}"
    if not isinstance(config, Mapping):
        raise UsageError(
            f"{where} does not describe a projector: it is no JSON object; train or export again"
        )
    try:
        if config["format"] != FORMAT:
            raise UsageError(
                f"{storage.root}: {CONFIG} has format {config['format']!r}, this program reads {FORMAT}; "
                "use the version that wrote it"
            )
        # Without memory: a size that the weights do not have must not be reserved before they are looked at.
        with torch.device("meta"):
            network = ProjectorNetwork(Shape(**config["network"]))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{where} does not describe a projector: {reason}; train or export again") from None
    try:
        tensors = safetensors.torch.load(storage.get_bytes(weights))
        _check_weights(tensors, network.state_dict())
    except NotFoundError:
        raise UsageError(
            f"{storage.root}: {WEIGHTS} is missing "
            "(training stopped before its first epoch ended?); train again"
        ) from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UsageError(
            f"{storage.root}/{weights} does not fit {CONFIG}: {error}; train or export again"
        ) from None
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def _check_weights(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not those of a network; a ValueError names the first tensor that is wrong."""
    if absent := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{absent[0]} is missing")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"{name!r} is no tensor of this network")
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype}, "
                f"the network has {tuple(expected[name].shape)} {expected[name].dtype}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite numbers")
        if name.endswith("_std") and not (tensor > 0).all():
            raise ValueError(f"{name} holds numbers that are not above 0")


def put_state(
    storage: Storage,
    identity: Mapping[str, Any],
    progress: TrainingProgress,
    network: ProjectorNetwork,
    optimizer: optim.Optimizer,
    averaged: ProjectorNetwork | None,
) -> None:
    """Put everything needed to go on, as one object: never half a state, and never one newer than another."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    if averaged is not None:
        tensors |= {f"averaged.{name}": tensor for name, tensor in averaged.state_dict().items()}
    for name, parameter in network.named_parameters():
        tensors |= {
            f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()
        }
    layout = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    story = {"identity": json.dumps(identity), "progress": json.dumps(vars(progress))}
    storage.put_bytes(STATE, safetensors.torch.save(layout, metadata=story))


def _progress(content: Mapping[str, Any]) -> TrainingProgress:
    """How far a run had come, from its state; TypeError or ValueError where that says none."""
    progress = TrainingProgress(**content)
    counts = (progress.epoch, progress.best_epoch)
    losses = (progress.best_val_loss, progress.seconds, *progress.losses)
    if progress.ridge_val_loss is not None:
        losses = (*losses, progress.ridge_val_loss)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"epochs are {counts}")
    if not all(type(loss) in (int, float) for loss in losses):
        raise ValueError("losses that are no numbers")
    if not all(isinstance(record, dict) for record in progress.history):
        raise ValueError("a history that is no list of records")
    return progress


def _damaged(where: str, error: object) -> UsageError:
    reason = " ".join(str(error).split())[:300]
    return UsageError(f"{where} is damaged ({reason}); delete it to train from the start")


@dataclass(frozen=True)
class State:
    """A state read back."""

    progress: TrainingProgress
    """How far that run had come."""
    tensors: Mapping[str, Tensor]
    """Of network and optimizer."""

    def restore(self, network: nn.Module, optimizer: optim.Optimizer, averaged: nn.Module | None) -> None:
        """Put the tensors where they were; UsageError where they are not those of this network."""
        try:
            network.load_state_dict(self._under("network."))
            if averaged is not None:
                averaged.load_state_dict(self._under("averaged."))
        except (RuntimeError, TypeError) as error:
            raise _damaged(STATE, error) from None
        for name, parameter in network.named_parameters():
            moments = {
                key: tensor.to(parameter.device, copy=True)
                for key, tensor in self._under(f"optimizer.{name}.").items()
            }
            if wrong := [
                key for key, tensor in moments.items() if tensor.shape not in (parameter.shape, torch.Size())
            ]:
                raise _damaged(STATE, f"{name}: its {wrong[0]} has another shape")
            if moments:
                optimizer.state[parameter] = moments

    def _under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, under the rest of their names."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def get_state(storage: Storage, identity: Mapping[str, Any]) -> State | None:
    """The state of an earlier attempt at the same run; None where there is none.

    Args:
        storage: the run's output.
        identity: everything that decides the run's result.

    Raises:
        UsageError: the state belongs to another run; names each difference.
    """
    try:
        data = storage.get_bytes(STATE)
    except NotFoundError:
        return None
    try:
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        told = parse_json(header["identity"].encode()).items()
        theirs = {
            key.removeprefix("train."): value for key, value in told
        }  # as earlier versions wrote options
        progress = _progress(parse_json(header["progress"].encode()))
        tensors = safetensors.torch.load(data)
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise _damaged(f"{storage.root}/{STATE}", error) from None
    mine = json.loads(json.dumps(identity))  # integer keys and tuples as JSON has them
    differing = [
        f"{key} {theirs.get(key)!r} there, {mine.get(key)!r} now"
        for key in sorted(theirs.keys() | mine.keys())
        if theirs.get(key) != mine.get(key)
    ]
    if differing:
        raise UsageError(
            f"{storage.root} holds a run with other settings: {'; '.join(differing)}; "
            f"choose another output, or delete {STATE} there to train from the start"
        )
    return State(progress, tensors)
