"""Training for a given time: a learning rate that follows the clock, a running average, steps as CUDA graphs."""

import math
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 0.05  # of the time
LINES = 20  # of progress a stage
AVERAGE = 0.999
MUON_RATE = 0.02


class Clock:
    """How much of a stage's time is used: on a CPU the processor's time, so that other work only delays the end."""

    def __init__(self, seconds: float, device: str) -> None:
        self._now = time.process_time if device == "cpu" else time.monotonic
        self._begun, self._seconds = self._now(), seconds

    @property
    def spent(self) -> float:
        """Seconds."""
        return self._now() - self._begun

    @property
    def share(self) -> float:
        """From 0 to 1, and more where the time is over."""
        return self.spent / self._seconds

    def rate(self) -> float:
        """A factor for the learning rate: up for the first twentieth, then a cosine down to zero."""
        share = min(self.share, 1.0)
        return (
            share / WARM_UP
            if share < WARM_UP
            else 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
        )


def orthogonalised(update: Tensor) -> Tensor:
    """A matrix with the same directions and singular values near one, by Newton-Schulz.

    Muon's coefficients: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.flatten(1)
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).view_as(update) * max(1.0, update.shape[0] / update[0].numel()) ** 0.5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weights of two and more dimensions; the rate is a tensor, for CUDA graphs."""

    def __init__(self, parameters: Iterable[Tensor], lr: Tensor, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                held = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                update = orthogonalised(parameter.grad + group["momentum"] * held)
                parameter.sub_(update * group["lr"])


class Learner:
    """A loss with its optimizers.

    Args:
        loss: of a dictionary of tensors of fixed shapes.
        modules: that learn; with the first goes a running average.
        rate: peak learning rate of AdamW.
        matrices: weights that Muon trains, at a peak rate of MUON_RATE.
        slow: weights that AdamW trains at a tenth of the rate.
        graphs: whether steps may be replayed as CUDA graphs; not where the forward pass looks at values.
    """

    def __init__(
        self,
        loss: Callable[[dict[str, Tensor]], Tensor],
        modules: list[nn.Module],
        rate: float,
        *,
        matrices: Iterable[Tensor] = (),
        slow: Iterable[Tensor] = (),
        graphs: bool = True,
    ) -> None:
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        device = parameters[0].device
        self._loss, self._module = loss, modules[0]
        on_muon, on_slow = list(matrices), list(slow)
        apart = {id(parameter) for parameter in (*on_muon, *on_slow)}
        self._peaks = [rate, 0.1 * rate]
        self._rates = [torch.tensor(0.0, device=device) for _ in self._peaks]
        self._optimizers: list[Any] = [
            torch.optim.AdamW(
                group, lr=own_rate, betas=(0.9, 0.98), weight_decay=0.01, capturable=device.type == "cuda"
            )
            for group, own_rate in zip(
                ([p for p in parameters if id(p) not in apart], on_slow), self._rates, strict=True
            )
            if group
        ]
        if on_muon:
            self._peaks.append(MUON_RATE)
            self._rates.append(torch.tensor(0.0, device=device))
            self._optimizers.append(Muon(on_muon, self._rates[-1]))
        self._parameters = parameters
        self.average = deepcopy(modules[0])
        self._device = device
        self._graphs: dict[tuple[Any, ...], tuple[Any, dict[str, Tensor]]] = {}
        self._eager = self._device.type != "cuda" or not graphs
        self._last = torch.zeros((), device=device)
        self.steps = 0

    def _once(self, batch: dict[str, Tensor]) -> None:
        loss = self._loss(batch)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        for optimizer in self._optimizers:
            optimizer.step()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        self._last.copy_(loss.detach())
        with torch.no_grad():
            averaged, current = list(self.average.parameters()), list(self._module.parameters())
            torch._foreach_lerp_(averaged, [p.detach() for p in current], 1 - AVERAGE)

    def step(self, batch: dict[str, Tensor], factor: float) -> None:
        """One step on a batch, with the rates at a factor of their peaks."""
        for rate, peak in zip(self._rates, self._peaks, strict=True):
            rate.fill_(peak * factor)
        self.steps += 1
        if self._eager or self.steps <= 3:
            self._once(batch)
            return
        key = tuple(tuple(tensor.shape) for tensor in batch.values())
        if key not in self._graphs:
            try:
                self._graphs[key] = self._captured(batch)
            except RuntimeError as error:  # slower, and right
                print(f"without CUDA graphs: {' '.join(str(error).split())[:200]}", flush=True)
                self._eager = True
                self._once(batch)
                return
        graph, static = self._graphs[key]
        for name, tensor in batch.items():
            static[name].copy_(tensor)
        graph.replay()

    def _captured(self, batch: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """A graph of a step and the tensors that it reads; capturing takes three steps on the batch."""
        static = {name: tensor.clone() for name, tensor in batch.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._once(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._once(static)
        return graph, static

    def run(self, seconds: float, batches: Callable[[], dict[str, Tensor]], name: str) -> None:
        """Take steps until the time is over."""
        clock, lines = Clock(seconds, self._device.type), 0
        while clock.share < 1:
            self.step(batches(), clock.rate())
            if self.steps % 10 == 0 and clock.share * LINES >= lines + 1:
                lines += 1
                print(
                    f"{name}: {clock.spent:.0f} s, {self.steps} steps, loss {float(self._last):.4f}",
                    flush=True,
                )
        early = (1 - AVERAGE**self.steps) < 0.98  # too few steps for the average to have forgotten the start
        if early:
            self.average.load_state_dict(self._module.state_dict())


def matrices_of(module: nn.Module) -> list[Tensor]:
    """The weights that Muon trains: matrices and convolutions, not those that see pixels."""
    return [
        weight
        for name, weight in module.named_parameters()
        if weight.dim() > 1 and weight.shape[1] > 3 and "adaLN" not in name and "conv_out" not in name
    ]


def save(model: Any, folder: Path) -> None:
    """Write weights in bfloat16, whole or not at all."""
    draft = folder.with_name(f".{folder.name}")
    model.to("cpu", torch.bfloat16).save_pretrained(draft, safe_serialization=True)
    draft.rename(folder)
