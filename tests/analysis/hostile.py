"""A study whose question, variants, images and reasons try to be anything but text."""

from pathlib import Path

import numpy as np
import yaml

from study.records.store import read_json, write_json
from tests.analysis.synthetic import GRID, Study, draw_study, write_provenance, write_samples

SCRIPT = "<script>document.title='ran'</script></style></svg><img src=x onerror=\"document.title='ran'\">"
LATEX = r"\input{x} $ % # & _ ^ ~ { } $x$ \alpha -- \end{document} {{ 7 * 7 }} {% raw %} {# x #} << x >> <% x %>"
LONG = "x" * 300
ODD = (
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202etxet\u202c "  # right to left, and an override
    "\U0001f469\u200d\U0001f680 \u56f3 ze\u200bro\nline \x07"
)
CELL = '=HYPERLINK("http://x") a|b [l](javascript:x) ![i](x) &lt;b&gt; *e* `c` \'q\' id="x" url(#x) #26262b'
NAMES = (SCRIPT, LATEX, LONG, ODD, CELL)
REASON = f"1. loss </pre></details> {SCRIPT} \u202e {LATEX} | {CELL}"


def draw_hostile(folder: Path) -> Study:
    """A finished study but for one failed run, with the crop of one image; the first variant is the baseline."""
    tree = yaml.safe_load(GRID)
    tree["question"] = f"- {SCRIPT} {LATEX} {ODD} {CELL}?"
    tree["variants"] = {
        name: {"model.assignment": {"kind": "hard", "group_sizes": [8 * size]}} for size, name in enumerate(NAMES, 1)
    }
    del tree["axes"], tree["analysis"]["curve"]
    pairs = [[name, NAMES[0]] for name in NAMES[1:]]
    tree["analysis"] |= {"baseline": NAMES[0], "comparisons": pairs, "dataset": "bundled"}
    study = draw_study(folder, yaml.safe_dump(tree, allow_unicode=True), images=len(NAMES))
    renamed = {f"image_{index:02d}": name for index, name in enumerate(NAMES)}
    study.records.images["image"] = study.records.images["image"].map(lambda image: renamed.get(image, image))
    failed = {"state": "failed", "reason": REASON, "traceback": REASON, "step": 7, "steps": 400}
    study.statuses[study.ids[NAMES[1], 1]] = failed
    write_samples(study, {"image_00": np.full((32, 32, 3), 128, np.uint8)}, side=16)
    for index in study.runs.glob("*/samples/index.json"):
        body = read_json(index)
        write_json(index, {"samples": [entry | {"image": CELL} for entry in body["samples"]]})
    write_provenance(study, device=SCRIPT)
    return study
