"""What a folder to publish holds besides the weights: the projector in forms that need none of this code.

B batch, S input positions, M output positions, P and E rows of the template's begin and end, D hidden.
"""

import io
import logging
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from projector.network.architectures import ProjectorNetwork
from shards.errors import OptionError

PROGRAM, ONNX, FOLDED = "projector.pt2", "projector.onnx", "linear.safetensors"
ONNX_NEEDS = ("onnx", "onnxscript")
TRACED_AT = (2, 40)  # B and S of the example; any others do, since both are dynamic
# Where things lay on the machine that made them; of `also` in a training's options the keys themselves are places.
PLACES = {"root", "data", "output", "cache", "checkpoint", "others"}


class RawToRaw(nn.Module):
    """A projector as one function without options."""

    def __init__(self, network: ProjectorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, vl: Tensor) -> Tensor:
        """(B, S, D) raw float32 to (B, P + M + E, D), whole conditionings; (B, M, D) where the end was not learnt."""
        return self.network.conditioning(vl)[0] if self.network.shape.suffix else self.network.project(vl)


def check_onnx() -> None:
    """Raise UsageError where the extra that ONNX needs is not installed."""
    if any(find_spec(name) is None for name in ONNX_NEEDS):
        raise OptionError(
            "onnx = true: onnx is not installed; pip install 'z-image-projector[onnx]', or leave it out"
        )


def program_of(network: ProjectorNetwork) -> torch.export.ExportedProgram:
    """The network as a torch.export program over any batch and sequence length.

    The example input and the stack traces are taken out: the one would be pickled, the others name files of this
    machine.
    """
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(*TRACED_AT, network.shape.width)
    with torch.no_grad():
        program = torch.export.export(
            RawToRaw(network).eval(), (example,), dynamic_shapes=({0: dynamic, 1: dynamic},)
        )
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
                node.meta.pop(key, None)
    return program


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """A torch.export archive: the graph as JSON and the weights as raw bytes, no pickle."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    """The program as ONNX: input `vl`, output `embeddings`, both float32."""
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it tells of operators of torchvision, unused here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, dynamo=True, input_names=["vl"], output_names=["embeddings"], verbose=False
        )
    assert made is not None
    data: bytes = made.model_proto.SerializeToString()
    return data


def folded_bytes(network: ProjectorNetwork) -> bytes:
    """A linear network as `weight` (D, D) and `bias` (D,) float32 of one plain layer from raw to raw."""
    plain = network.folded()
    return safetensors.torch.save({"weight": plain.weight.contiguous(), "bias": plain.bias.contiguous()})


def without_places(content: Any) -> Any:
    """JSON without what says where things lay."""
    if isinstance(content, Mapping):
        return {
            key: without_places(value)
            for key, value in content.items()
            if key not in PLACES and not (key == "also" and isinstance(value, Mapping))
        }
    return [without_places(value) for value in content] if isinstance(content, list) else content
