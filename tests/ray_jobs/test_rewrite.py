"""Prompts made long by a model on disk, in a file that can be gone on with and that `build` takes."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from projector.making.prompt_rewriter import INSTRUCTION, Rewriter
from projector.models.resolve import own_folder
from ray_jobs.__main__ import main
from shards.prompts.files import read_prompts

LONG = " ".join(f"word{i}" for i in range(30))
# The last one holds what some take for the end of a line.
PROMPTS = ["a red fox", LONG, "an oil painting of a lighthouse", "the sea\u2028at night"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny text encoder, saved as language models are: model and tokenizer in one folder."""
    folder = tmp_path_factory.mktemp("language") / "tiny-writer"
    image = own_folder("tiny") / "image"
    AutoModelForCausalLM.from_pretrained(image / "text_encoder").save_pretrained(folder)
    AutoTokenizer.from_pretrained(image / "tokenizer").save_pretrained(folder)
    return folder


def words(tmp_path, model_folder, **changes):
    (tmp_path / "short.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    told = {
        "prompts": tmp_path / "short.txt",
        "model": model_folder,
        "output": tmp_path / "long.jsonl",
        "words": 20,
        "batch_size": 2,
    } | changes
    return ["rewrite", *(word for name, value in told.items() for word in (f"--rewrite.{name}", str(value)))]


class Talker:
    """Stands in for the model: says more of whatever it is asked."""

    def rewrite(self, prompts):
        return [f"{prompt}, and twenty words more" for prompt in prompts]


def test_short_prompts_become_long_and_long_ones_stay(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setattr(Rewriter, "from_pretrained", lambda *_, **__: Talker())
    assert main(words(tmp_path, model)) == 0
    assert "4 prompts, 1 of them as they were" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "long.jsonl").read_bytes().splitlines()]
    assert [record["original"] for record in records] == PROMPTS
    assert records[0]["prompt"] == "a red fox, and twenty words more"
    assert records[1]["prompt"] == LONG
    assert (records[2]["style"], records[2]["model"]) == ("painterly", "tiny-writer")
    source = read_prompts(tmp_path / "long.jsonl")
    assert [prompt.caption for prompt in source.prompts] == [record["prompt"] for record in records]


def test_the_answers_are_the_models_own_greedy_ones(model):
    """Against `generate` on one prompt at a time, without pipeline, batch or padding."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        asked = f"{INSTRUCTION.format(words=20, more=30)}\n\n{prompt}"
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}],
            add_generation_prompt=True,
            enable_thinking=False,
            return_tensors="pt",
            return_dict=True,
        )
        written = network.generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True)
        expected.append(" ".join(text.split("</think>")[-1].split()).strip('"“”'))
    assert any(expected)
    assert Rewriter.from_pretrained(str(model), 20).rewrite(PROMPTS) == expected


class Parrot:
    """Stands in for the model: says the same of everything."""

    def rewrite(self, prompts):
        return ["a long story about\x00 a fox" for _ in prompts]


def test_what_is_said_already_is_not_said_again(tmp_path, model, monkeypatch):
    monkeypatch.setattr(Rewriter, "from_pretrained", lambda *_, **__: Parrot())
    assert main(words(tmp_path, model)) == 0
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "long.jsonl").read_bytes().splitlines()]
    assert prompts == ["a long story about a fox", *PROMPTS[1:]]


def test_a_killed_run_goes_on_after_the_last_whole_line(tmp_path, model, monkeypatch):
    assert main(words(tmp_path, model)) == 0
    whole = (tmp_path / "long.jsonl").read_bytes()
    (tmp_path / "long.jsonl").write_bytes(whole[: whole.index(b"\n") + 20])
    asked = []
    monkeypatch.setattr(
        Rewriter,
        "rewrite",
        lambda self, prompts, real=Rewriter.rewrite: asked.extend(prompts) or real(self, prompts),
    )
    assert main(words(tmp_path, model)) == 0
    assert asked == PROMPTS[2:]
    assert [
        json.loads(line)["original"] for line in (tmp_path / "long.jsonl").read_bytes().splitlines()
    ] == PROMPTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ""}, "rewrite.prompts is needed: a prompt file"),
        ({"output": "/dev/null/long.jsonl"}, "rewrite.output = '/dev/null/long.jsonl': cannot be used"),
        ({"output": "long.txt"}, "give a name in .jsonl"),
        ({"model": "/nowhere/at/all"}, "rewrite.model = '/nowhere/at/all'"),
        ({"model": "{cut}"}, "model.safetensors has 0 bytes"),
        ({"words": 30}, "holds something else than the beginning of these prompts"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_loads(tmp_path, model, monkeypatch, capsys, changes, message):
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"prompt": "x", "original": PROMPTS[0], "model": model.name, "words": 20}) + "\n"
    )
    monkeypatch.setattr(Rewriter, "from_pretrained", lambda *_, **__: pytest.fail("loaded a model"))
    cut = shutil.copytree(model, tmp_path / "cut" / model.name)
    (cut / "model.safetensors").write_bytes(b"")
    changes = {name: str(value).replace("{cut}", str(cut)) for name, value in changes.items()}
    assert main(words(tmp_path, model, **changes)) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path, model, capsys):
    (tmp_path / "long.jsonl").write_text('{"prompt": "mine"}\n{"prompt": "without an end"}')
    assert main(words(tmp_path, model)) == 2
    assert "give another output" in capsys.readouterr().err
    assert (tmp_path / "long.jsonl").read_text() == '{"prompt": "mine"}\n{"prompt": "without an end"}'


def test_a_model_that_cannot_chat(tmp_path, model, capsys):
    import shutil

    mute = tmp_path / "mute"
    shutil.copytree(model, mute)
    tokenizer = AutoTokenizer.from_pretrained(mute)
    tokenizer.chat_template = None
    (mute / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(mute)
    assert main(words(tmp_path, mute)) == 2
    assert "no chat template" in capsys.readouterr().err
