"""The trained projector as users hold it: raw Qwen3-VL embeddings in, raw Qwen3-4B-like embeddings out.

B batch, S sequence, M outputs, D hidden.
"""

import json
from os import PathLike
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from projector.data.align import evenly
from projector.data.template import token_rms
from projector.models.int8 import Quantize
from projector.network.architectures import ProjectorNetwork
from projector.network.blend import blend_interpolate, concatenated
from projector.network.checkpoint import CONFIG, get_config, get_network, put_json, put_network
from projector.network.description import check_description
from projector.network.hub import find_projector, push
from projector.options import Reader
from shards.errors import UsageError
from shards.format.sample import KIND_CAPTION, KIND_TEMPLATE
from shards.stores.local import open_storage

Mode = Literal["concat", "blend"]


class Projector:
    """A trained network with the description of what it may be applied to.

    Args:
        network: the network, statistics included.
        config: the content of its config.json.
    """

    def __init__(self, network: ProjectorNetwork, config: dict[str, Any]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | None = None,
    ) -> "Projector":
        """Load what `train`, `export` or `push_to_hub` wrote.

        Args:
            path: folder, s3:// root, `.safetensors` file that was exported, or Hub id (`org/name`,
                `org/name@revision`).
            device: where to put it.
            revision: of a Hub id: a branch, a tag or a commit.
            token: of the Hub; None: the one of `hf auth login` or HF_TOKEN.

        Raises:
            UsageError: nothing there, or files that do not fit together.
        """
        root, weights = find_projector(str(path), revision, token)
        storage = open_storage(root)
        config = get_config(storage, weights)
        network = get_network(storage, config, weights)
        check_description(config, network.shape.width, storage.root)
        return cls(network.to(device), config)

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write config.json and model.safetensors, which `from_pretrained` reads back."""
        storage = open_storage(str(path))
        put_network(storage, self.network, self.config)
        put_json(storage, CONFIG, self.config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        branch: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        license: str = "apache-2.0",
        commit_message: str = "Push projector",
    ) -> str:
        """Put weights, config.json and a card into a repository of the Hub; nothing there names this machine.

        `export` makes a folder with figures and pictures, too, for `hf upload`.

        Args:
            repo_id: `org/name`; made where there is none.
            branch: made where there is none; None: the default one.
            private: of a new repository; None: as the organisation has it.
            token: None: the one of `hf auth login` or HF_TOKEN.
            license: the Hub's identifier of the licence, for a new card; a card that is there stays.
            commit_message: of the commit.

        Returns:
            URL of the commit.
        """
        return push(
            self.network,
            self.config,
            repo_id,
            restore=self.restore,
            license_id=license,
            branch=branch,
            private=private,
            token=token,
            commit_message=commit_message,
        )

    @property
    def width(self) -> int:
        """D."""
        return self.network.shape.width

    @property
    def layer(self) -> int:
        """The Qwen3-VL layer it reads, counted from the end."""
        return int(self.config["layer"])

    @property
    def reader(self) -> Reader:
        """What read the pictures: `vl`, Qwen3-VL, or `graft`, its vision tower before the pipeline's text encoder."""
        return "graft" if self.config.get("reader") == "graft" else "vl"

    @property
    def text_mode(self) -> str:
        """Text that stood in the VL input at training: `caption`, `none` or `mixed`."""
        return str(self.config["text_mode"])

    @property
    def vl_limit(self) -> float:
        """Root mean square above which a raw VL token is an attention sink."""
        return float((self.config.get("template") or {}).get("vl_limit", "inf"))

    @property
    def tokens(self) -> str:
        """Kinds of VL tokens it takes: `image`, `text` or `all`; pass those and no others."""
        return str(self.config["tokens"])

    @property
    def vl_tokens(self) -> str:
        """`all`, or `pooled:N` where the dataset it was trained on holds averages of tokens; pass the same."""
        return str(self.config.get("dataset", {}).get("vl_tokens", "all"))

    @property
    def picture_size(self) -> dict[str, int]:
        """Pixels of the pictures it was trained on: `height` and `width`, or `max_side`; empty where unrecorded."""
        return dict(self.config.get("dataset", {}).get("picture", {}))

    @property
    def quantize(self) -> Quantize:
        """How the weights of the encoders that made its training pairs were rounded; read with the same."""
        rounding: Quantize = self.config.get("dataset", {}).get("quantize", "none")
        return rounding

    @property
    def keeps_positions(self) -> bool:
        """Whether output i belongs to input i; attention has a fixed number of outputs instead."""
        return self.network.keeps_positions

    @property
    def restore(self) -> float:
        """How far outputs are stretched to the real tokens' mean and spread: 0 not at all, 1 fully. Can be set."""
        return float(self.network.restore_strength)

    @restore.setter
    def restore(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise UsageError(
                f"restore = {strength} is outside [0, 1]; 0 is least squared error, 1 full spread"
            )
        self.network.restore_strength.fill_(strength)

    def with_template(self, embeddings: Tensor) -> Tensor:
        """Put the template's constant tokens, attention sink included, before projected embeddings.

        The projector leaves them out, since they are the same in every prompt; a conditioning that is made of
        projected tokens alone needs them. A blend with a prompt's own conditioning has them from there.

        Args:
            embeddings: (M, D) projected.

        Returns:
            (P + M, D), P as config.json's `template.prefix_tokens` says.
        """
        return torch.cat([self.network.text_prefix.to(embeddings), embeddings])

    @torch.no_grad()
    def conditioning(
        self,
        embeddings: Tensor,
        prompt: Tensor | None = None,
        kind: Tensor | None = None,
        *,
        mode: Mode = "concat",
        alpha: float = 0.5,
    ) -> Tensor:
        """Make a conditioning, ready for `prompt_embeds=[...]`.

        It is whole with a prompt, or from a projector trained with objective `response`; others do not predict the
        template's end, which then is missing behind a picture alone.

        Args:
            embeddings: (S, D) raw VL embeddings of the picture, of the tokens named by `tokens`; attention sinks among
                them are left out, as in training.
            prompt: (T, D) the text encoder's embeddings of a prompt, template included; None: the picture alone.
            kind: (T,) of each prompt row, as the text encoder gives it; None: the template is taken to be as long as in
                the training data.
            mode: with a prompt: `concat` puts projected rows behind the prompt's own and keeps the prompt's template;
                `blend` mixes them into the prompt's own rows, each brought to their number by area.
            alpha: share of the picture under `blend`.

        Returns:
            (rows, D) in the embeddings' dtype and on their device.

        Raises:
            UsageError: shapes that do not fit, an unknown mode, alpha outside [0, 1], or a prompt without own rows.
        """
        if mode not in get_args(Mode):
            raise UsageError(f"mode = {mode!r}; expected one of {', '.join(get_args(Mode))}")
        self._check(embeddings)
        if embeddings.dim() != 2:
            raise UsageError(
                f"embeddings of shape {tuple(embeddings.shape)} are a batch; a conditioning is of one picture, "
                f"(seq, {self.width})"
            )
        for name, given in (("embeddings", embeddings), ("prompt", prompt)):
            if given is not None and not given.isfinite().all():
                raise UsageError(f"{name}: NaN or infinite values; read or encode it again")
        inputs = self.ordinary(embeddings)
        if self.keeps_positions:  # as many as training gave it
            inputs = evenly(inputs, int(self.config.get("length", len(inputs))))
        home = self.network.input_mean.device
        whole = self.network.conditioning(inputs.to(home)[None])[0][0].to(embeddings)
        if prompt is None:
            return whole
        before, behind = self.network.shape.prefix, self.network.shape.suffix
        rows = whole[before : len(whole) - behind]
        first, last = self.own_rows(prompt, kind)
        text = prompt.to(embeddings)
        own = torch.full((len(text),), KIND_TEMPLATE)
        own[first:last] = KIND_CAPTION
        if mode == "concat":
            return concatenated(rows, text, own)
        return blend_interpolate(rows, text, alpha, kind=own)

    def own_rows(self, prompt: Tensor, kind: Tensor | None = None) -> tuple[int, int]:
        """Where a prompt's own rows begin and end; arguments and errors are those of `conditioning`."""
        if prompt.dim() != 2 or prompt.shape[1] != self.width:
            raise UsageError(
                f"prompt of shape {tuple(prompt.shape)} does not fit; expected (rows, {self.width})"
            )
        if kind is not None and kind.shape != prompt.shape[:1]:
            raise UsageError(
                f"kind of shape {tuple(kind.shape)} does not fit; expected one for each of the prompt's {len(prompt)} "
                "rows"
            )
        if kind is not None:
            places = torch.nonzero(kind == KIND_CAPTION)[:, 0].tolist()
            first, last = (places[0], places[-1] + 1) if places else (0, 0)
        else:
            first = self.network.shape.prefix
            last = len(prompt) - int((self.config.get("template") or {}).get("suffix_tokens", 0))
        if not 0 <= first < last <= len(prompt):
            raise UsageError(
                f"prompt: {len(prompt)} rows, none of its own beside the template's; give a prompt that is not empty, "
                "or none for the picture alone"
            )
        return first, last

    def ordinary(self, embeddings: Tensor) -> Tensor:
        """Raw VL tokens (S, D) without attention sinks.

        Raises:
            UsageError: none would be left.
        """
        kept = embeddings[self.is_ordinary(embeddings)]
        if not len(kept):
            raise UsageError(
                f"embeddings: all {len(embeddings)} tokens have a root mean square above {self.vl_limit:g}, which "
                "ordinary ones of the training data stay under; give hidden states of the layer and model that the "
                "projector was trained on, as they are"
            )
        return kept

    def is_ordinary(self, embeddings: Tensor) -> Tensor:
        """(S,) bool: which raw VL tokens (S, D) are no attention sinks, by the limit that training found."""
        ordinary: Tensor = token_rms(embeddings) <= self.vl_limit
        return ordinary

    def to(self, device: torch.device | str) -> "Projector":
        """Move to a device; returns itself."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project embeddings.

        Args:
            embeddings: (S, D) or (B, S, D), raw, any float dtype, of the tokens named by `tokens`.
            mask: (S,) or (B, S) bool, True where a position exists; None: everywhere.

        Returns:
            (M, D) or (B, M, D), raw, in the input's dtype and on its device; M is S unless the network is
            attention.

        Raises:
            UsageError: another shape or width, or no position at all.
        """
        self._check(embeddings)
        home = self.network.input_mean.device
        batched = embeddings.to(home) if embeddings.dim() == 3 else embeddings.to(home)[None]
        if mask is not None:
            mask = (mask if mask.dim() == 2 else mask[None]).to(home)
        # What is bfloat16 before and after gains nothing from float32 products, which take three times as long.
        reduced = home.type == "cuda" and embeddings.dtype == torch.bfloat16
        with torch.autocast(home.type, torch.bfloat16, enabled=reduced):
            outputs = self.network.project(batched, mask)
        outputs = outputs if embeddings.dim() == 3 else outputs[0]
        return outputs.to(embeddings.device, embeddings.dtype)

    def _check(self, embeddings: Tensor) -> None:
        """Refuse embeddings that the network does not take."""
        if embeddings.dim() not in (2, 3) or embeddings.shape[-1] != self.width or not embeddings.shape[-2]:
            raise UsageError(
                f"embeddings of shape {tuple(embeddings.shape)} do not fit; this projector takes "
                f"(seq, {self.width}) or (batch, seq, {self.width}) with at least one position"
            )
        if not embeddings.is_floating_point():
            raise UsageError(f"embeddings are {embeddings.dtype}; pass a float dtype")

    def __repr__(self) -> str:
        shown = {key: self.config.get(key) for key in ("arch", "width", "layer", "text_mode", "tokens")}
        return f"Projector({json.dumps(shown)[1:-1]})"
