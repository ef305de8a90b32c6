"""Prompts with a reference behind them: a projector learns to leave to the prompt what the prompt names.

A pair's caption is edited, and a prompt names the edit. Under the prompt's rows with the reference's projected rows
behind them, the image model should answer as it does to the edited caption. That needs no further picture: the
model samples the edited caption from the pair's own noise, and its velocities are what is learnt.

B batch, N pairs, P rows of a prompt, R rows of a conditioning, D hidden.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from projector.data.packed import Ragged
from projector.data.pairs import Conditioning
from projector.inference.frozen_transformer import FrozenTransformer
from projector.inference.text_encoder import TextEncoder, TextEncoding
from projector.teaching.trajectories import Trajectories
from shards.format.sample import KIND_CAPTION
from shards.prompts.prompt_edits import Edit, draw_prompt_edit
from shards.scenes.scene_edits import draw_scene_edit

ENCODED_TOGETHER = 256  # captions


class EditedPairs:
    """An edit of each pair whose caption can be edited, and what the frozen model does under it.

    Args:
        model: the frozen model.
        encoder: the text encoder that made the pairs' conditionings; on the model's device while it is at work.
        conditionings: of the pairs, in their order.
        first: place of the first of them among all pairs, so that a pair's edit does not depend on the workers.
        count: how many.
        seed: of the edits.
        together: see `Trajectories`.
        label: what progress lines call them; "" for none.
        folder: local folder for what does not fit into memory.
    """

    def __init__(
        self,
        model: FrozenTransformer,
        encoder: TextEncoder,
        conditionings: Iterator[Conditioning],
        *,
        first: int,
        count: int,
        seed: int,
        together: int | None = None,
        label: str = "",
        folder: str | None = None,
    ) -> None:
        self._encoder, self._seed = encoder, seed
        self._prompts: list[Tensor] = []
        self._ends: list[int] = []
        self._places: list[int] = []
        self.paths = Trajectories(
            model,
            self._targets(conditionings, first, model.device),
            count,
            together=together,
            label=label,
            folder=folder,
        )
        self.places = torch.tensor(self._places, dtype=torch.int64)
        """(N,) of each pair among those with an edit, -1 for those without."""
        self._rows = Ragged.of(self._prompts, self._prompts[0].shape[1] if self._prompts else 0)
        del self._encoder

    def _targets(
        self, conditionings: Iterator[Conditioning], first: int, device: torch.device
    ) -> Iterator[Conditioning]:
        """What the edited pictures are made from; the encoder gives way to their sampling."""
        place = first
        while block := list(islice(conditionings, ENCODED_TOGETHER)):
            edits = [
                draw_edit(item.caption, np.random.default_rng([self._seed, place + number]))
                for number, item in enumerate(block)
            ]
            place += len(block)
            self._encoder.to(str(device))
            encoded = self._encoded(block, edits)
            self._encoder.to("cpu")
            yield from encoded

    def _encoded(self, block: list[Conditioning], edits: list[Edit | None]) -> list[Conditioning]:
        targets = []
        told = [edit for edit in edits if edit is not None]
        prompts = iter(self._encoder.encode([edit.prompt for edit in told]))
        captions = iter(self._encoder.encode([edit.caption for edit in told]))
        for item, edit in zip(block, edits, strict=True):
            prompt, caption = (next(prompts), next(captions)) if edit is not None else (None, None)
            if not isinstance(prompt, TextEncoding) or not isinstance(caption, TextEncoding):
                self._places.append(-1)
                continue
            self._places.append(len(self._prompts))
            self._prompts.append(prompt.embeddings.to(item.text))
            self._ends.append(int(torch.nonzero(prompt.kind == KIND_CAPTION)[-1]) + 1)
            targets.append(Conditioning(caption.embeddings.to(item.text), item.seed))
        return targets

    def behind_prompts(
        self, places: Tensor, rows: Tensor, exists: Tensor, *, prefix: int, suffix: int
    ) -> tuple[Tensor, Tensor]:
        """Put projected rows behind the prompts of their pairs' edits, and before the prompts' own ends.

        Args:
            places: (B,) int64 of pairs among those with an edit, on the CPU.
            rows: (B, R, D) whole conditionings of the references alone, padded on the right.
            exists: (B, R) bool, False where a row is padding.
            prefix: rows of the template before the projected ones.
            suffix: rows of the template behind them.

        Returns:
            (B, P + R', D) and (B, P + R') in the same form.
        """
        prompts, there = self._rows.gather(places)
        wholes = []
        for number, place in enumerate(places.tolist()):
            end, prompt = self._ends[place], prompts[number, : int(there[number].sum())].to(rows)
            own = rows[number, prefix : int(exists[number].sum()) - suffix]
            wholes.append(torch.cat([prompt[:end], own, prompt[end:]]))
        lengths = torch.tensor([len(whole) for whole in wholes], device=rows.device)
        padded = pad_sequence(wholes, batch_first=True)
        return padded, torch.arange(padded.shape[1], device=rows.device) < lengths[:, None]


def draw_edit(caption: str, generator: np.random.Generator) -> Edit | None:
    """Draw an edit of a caption whose words are known: of a scene, or of a built-in prompt; None for others."""
    return draw_scene_edit(caption, generator) or draw_prompt_edit(caption, generator)
