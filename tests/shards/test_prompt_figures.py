"""Figures of prompts against counting by hand."""

from shards.format.plan import make_plan
from shards.prompts import variety
from shards.prompts.prompt import Prompt
from shards.prompts.variety import plan_figures, prompt_figures

LONG = " ".join(f"word{i}" for i in range(40))
CAPTIONS = ["a red fox", "a red fox in snow", LONG, f"{LONG} more", f"other {LONG}"]


def test_figures_are_what_a_hand_counts():
    prompts = [
        Prompt(caption, "photograph", "vintage", "people" if i else "animals")
        for i, caption in enumerate(CAPTIONS)
    ]
    plan = make_plan(prompts, seed=0, val_fraction=0.5, samples_per_shard=2, segments=(5,))
    figures = prompt_figures(plan)
    assert figures.prompts == figures.compared == figures.looked_at == 5
    assert plan_figures(plan) == figures
    assert figures.cells == {("photograph", "vintage", "animals"): 1, ("photograph", "vintage", "people"): 4}
    assert figures.lengths == {0: 2, 40: 3}
    assert figures.distinct[1] == (3 + 2 + 40 + 2, 3 + 5 + 40 + 41 + 41)
    assert figures.distinct[3] == (3 + 38 + 1 + 1, 1 + 3 + 38 + 39 + 39)
    assert figures.near_duplicates == 2
    split = {sample.caption: sample.split for sample in plan}
    assert figures.across_splits == sum(split[caption] != split[LONG] for caption in CAPTIONS[3:])
    told = "\n".join(figures.lines())
    assert "2 of content, style and subject, 1 to 4 prompts each" in told
    assert "0+: 2, 40+: 3" in told
    assert figures.to_json()["cells"][0] == {
        "content": "photograph",
        "style": "vintage",
        "subject": "animals",
        "prompts": 1,
    }


def test_no_prompts_are_no_error():
    assert prompt_figures([]).lines()[0].startswith("cells          0 ")


class Counting(tuple):
    """Prompts that count how often one is put together."""

    asked = 0

    def __getitem__(self, place):
        Counting.asked += 1
        return super().__getitem__(place)


def test_a_large_plan_is_looked_at_in_part(monkeypatch):
    """Figures of the first prompts alone, however many follow, and each line says so."""
    monkeypatch.setattr(variety, "COMPARED", 30)
    prompts = Counting(Prompt(f"{LONG} {number}", "photograph") for number in range(300))
    plan = make_plan(prompts, seed=0, val_fraction=0.2, samples_per_shard=7, segments=(200, 300))
    Counting.asked = 0
    figures = plan_figures(plan)
    assert Counting.asked == 30
    assert (figures.prompts, figures.looked_at, figures.compared) == (300, 30, 30)
    assert figures == prompt_figures([sample for sample in plan if sample.index < 30], 300)
    assert figures.cells == {("photograph", "", ""): 30}
    lines = figures.lines()
    assert all(line.endswith(" among the first 30") for line in lines)
