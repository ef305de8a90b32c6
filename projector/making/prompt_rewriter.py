"""Short prompts made long by a local language model, in the user's own words and more."""

from collections.abc import Sequence
from typing import Any

import torch

INSTRUCTION = (
    "Rewrite this prompt for an image generator as one paragraph of {words} to {more} words. Keep everything that it "
    "says, in its language; add setting, light, colours, composition and detail that fit. Answer with the prompt alone."
)
TOKENS_PER_WORD = 2
THOUGHT = "</think>"  # of Qwen3, which ends with it what is not the answer


class Rewriter:
    """A causal language model with a chat template, decoding greedily: the same prompt gives the same answer.

    Args:
        generate: a `transformers` text-generation pipeline.
        words: that a rewritten prompt should have at least, and half as many more at most.
    """

    def __init__(self, generate: Any, words: int) -> None:
        self._generate = generate
        self._words = words

    @classmethod
    def from_pretrained(cls, path: str, words: int) -> "Rewriter":
        """Load from a local folder; ValueError where its tokenizer has no chat template."""
        from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

        on_gpu = torch.cuda.is_available()
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        if not tokenizer.chat_template:
            raise ValueError("its tokenizer has no chat template; use an instruction-tuned model")
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16 if on_gpu else torch.float32, use_safetensors=True
        )
        return cls(
            pipeline("text-generation", model=model, tokenizer=tokenizer, device=0 if on_gpu else -1), words
        )

    def rewrite(self, prompts: Sequence[str]) -> list[str]:
        """Long versions of prompts, each on one line; empty where the model had nothing to say."""
        told = INSTRUCTION.format(words=self._words, more=self._words * 3 // 2)
        chats = [[{"role": "user", "content": f"{told}\n\n{prompt}"}] for prompt in prompts]
        answers = self._generate(
            chats,
            batch_size=len(chats),
            max_new_tokens=self._words * 3 // 2 * TOKENS_PER_WORD,
            do_sample=False,
            return_full_text=False,
            tokenizer_encode_kwargs={"enable_thinking": False},
        )
        texts = [answer[0]["generated_text"] for answer in answers]
        return [" ".join(text.split(THOUGHT)[-1].split()).strip('"“”') for text in texts]
