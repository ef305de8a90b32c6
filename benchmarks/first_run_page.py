"""The page of `first_run.py`: a sentence, figures and small pictures for each question; everything is escaped."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from first_run_advice import sentences
from PIL import Image

THUMBNAIL = 160  # pixels of a side
TITLES = {
    "references": "What everything is held against",
    "speed": "How fast, and how much memory?",
    "states": "Sinks, constant tokens and outlier dimensions",
    "graft": "Does the graft work without training?",
    "template_end": "Does the template's end carry content?",
    "layers": "Which VL layer, untrained?",
    "velocities": "Does the velocity error say what the pictures say?",
    "step_counts": "One step more?",
}
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .5rem;text-align:left;vertical-align:top;font-size:.85rem}
.wide{overflow-x:auto}img{display:block;width:110px;height:auto}pre{overflow-x:auto;background:#8881;padding:1rem}
td.caption{min-width:14rem;overflow-wrap:anywhere}.no{color:#a40}"""


def page(result: Mapping[str, Any], prompts: Sequence[str], recommendation: str, output: Path) -> str:
    """The whole page.

    Args:
        result: as in first_run.json.
        prompts: captions of the references, by number.
        recommendation: YAML.
        output: that holds `pictures`.
    """
    said = sentences(result)
    parts = [
        f"<section><h2>{escape(TITLES.get(name, name))}</h2>{_step(name, step, said, prompts, output)}</section>"
        for name, step in result["steps"].items()
    ]
    models = ", ".join(str(value) for value in result["options"]["models"].values())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>First run</title>'
        f"<style>{STYLE}</style><h1>First run</h1><p>{escape(models)}</p>"
        "<p>Two scores compare pictures, and no further model is needed: the cosine of what the VL model reads at "
        "layer -8, and that of thumbnails of 16 pixels, both after what all references share is taken out. 1 is the "
        "same picture, about 0 another one. The VL model also read the references that some conditionings are made "
        "of, so look at the pictures, too. Intervals are 95%, by Student's t.</p>"
        f"{''.join(parts)}<section><h2>Recommendation</h2><pre>{escape(recommendation)}</pre></section></html>\n"
    )


def _step(
    name: str, step: Mapping[str, Any], said: Mapping[str, str], prompts: Sequence[str], output: Path
) -> str:
    if "found" not in step:
        return f'<p class="no">{escape(str(step.get("not_done") or step.get("error")))}</p>'
    figures = {key: value for key, value in step["found"].items() if key != "folders"}
    return (
        f"<p>{escape(said[name])}</p>{_pictures(step['found'].get('folders', []), prompts, output)}"
        f"<details><summary>All figures</summary><pre>{escape(json.dumps(figures, indent=1))}</pre></details>"
    )


def _pictures(folders: Sequence[str], prompts: Sequence[str], output: Path) -> str:
    """A row for each reference, a column for each way it was drawn."""
    if not folders:
        return ""
    head = "".join(f"<th>{escape(folder)}</th>" for folder in folders)
    rows = "".join(
        f'<tr><td class="caption">{escape(prompt)}</td>'
        + "".join(f"<td>{_picture(output, folder, number)}</td>" for folder in folders)
        + "</tr>"
        for number, prompt in enumerate(prompts)
    )
    return f'<div class="wide"><table><thead><tr><th>prompt</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _picture(output: Path, folder: str, number: int) -> str:
    place = Path("pictures") / folder / f"{number:02d}.png"
    if not (output / place).is_file():
        return ""
    small = io.BytesIO()
    with Image.open(output / place) as picture:
        picture.convert("RGB").resize((THUMBNAIL, THUMBNAIL)).save(small, format="JPEG", quality=80)
    data = base64.b64encode(small.getvalue()).decode()
    return (
        f'<a href="{escape(str(place))}"><img alt="" loading="lazy" src="data:image/jpeg;base64,{data}"></a>'
    )
