import csv
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from study.analysis import rendering
from study.analysis.markup import reveal
from study.analysis.rendering import ReportError
from study.analysis.report import build_report
from study.records.store import read
from tests.analysis.generative import REASON, draw_generative
from tests.analysis.hostile import CELL, NAMES
from tests.analysis.hostile import REASON as REASON_OF_FAILURE
from tests.analysis.synthetic import draw_study, write_provenance, write_samples

VOID = {"meta", "br", "path", "use", "image", "rect", "link", "img", "wbr", "hr", "input"}
DRAWN = set("svg metadata RDF Work type format defs style g path use text image clipPath rect".split())  # noqa: SIM905
TEXT = "{http://www.w3.org/2000/svg}text"


class Balanced(HTMLParser):
    """Fails on an element that is closed out of turn."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "xlink:href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def build(study, out):
    return build_report(
        study.plan, study.ids, study.records, study.statuses, study.runs, out, "study report ablations/groups.yaml"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    study = draw_study(folder, effects={"soft, count=16": 0.12, "hard, count=32": -0.9})
    write_samples(study)
    write_provenance(study)
    return study, build(study, folder / "out"), folder


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished")
    study = draw_study(folder)
    run = study.ids["soft, count=32", 0]
    reason = "loss <is> not_finite & 50% at step 7"
    study.statuses[run] = {"state": "failed", "reason": reason, "traceback": "Traceback <x>", "step": 7, "steps": 400}
    del study.ids["hard, count=8", 0], study.ids["hard, count=8", 1]
    return {kind: path.read_text() for kind, path in build(study, folder / "out").items() if kind.startswith("report")}


def test_everything_that_is_named_is_written(finished):
    _, written, folder = finished
    assert {"report.html", "report.md", "report.tex", "figures/forest.svg", "tables/results.csv"} <= set(written)
    assert all(path.stat().st_size for path in written.values())
    assert {str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*") if p.is_file()} == set(written)
    for name in ("forest", "training", "images", "counts", "crops-00"):
        assert {f"figures/{name}.{ending}" for ending in ("svg", "png", "pdf")} <= set(written)


def test_html_is_one_sound_file(finished):
    html = finished[1]["report.html"].read_text()
    page = Balanced()
    page.feed(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner <= set(page.ids)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert html.count("<script") == html.count("<style>") == 1
    assert "prefers-color-scheme: dark" in html
    assert len(html) < 5_000_000


def test_the_order_is_answer_first(finished):
    html = finished[1]["report.html"].read_text()
    titles = re.findall(r"<h2>([^<]+?) *<", html)
    assert titles[:5] == ["Answers", "What was declared", "Declared comparisons", "Results", "Noise floor"]
    assert titles[-4:] == ["Runs", "Costs", "Provenance", "Rebuild"]
    exploratory = re.findall(r'<h2>([^<]+?) <span class="badge">exploratory', html)
    assert exploratory == [
        "Along model.prototypes.count", "Crops", "Spectra", "Assignment maps", "What would overturn this",
        "Protocol sensitivity", "Other claims and datasets",
    ]  # fmt: skip
    assert "Below bicubic enlargement on the primary dataset: hard, count=32." in html
    assert "study report ablations/groups.yaml" in html


def test_the_three_formats_say_the_same(finished):
    _, written, _ = finished
    html, md, tex = (written[f"report.{kind}"].read_text() for kind in ("html", "md", "tex"))
    answers = len(re.findall(r'<article class="answer', html))
    assert answers == 3
    for text in ("Answers", "Noise floor", "Protocol sensitivity", "needs about"):
        assert all(text in page for page in (html, md, tex))
    assert md.count("## ") == html.count("<h2>")
    assert tex.count(r"\section*") == html.count("<h2>")
    assert "![" in md
    assert "(figures/forest.png)" in md


def test_latex_is_balanced(finished):
    tex = finished[1]["report.tex"].read_text()
    body = tex.replace(r"\{", "").replace(r"\}", "")
    assert body.count("{") == body.count("}")
    begun = re.findall(r"\\begin\{(\w+)\}", tex)
    assert sorted(begun) == sorted(re.findall(r"\\end\{(\w+)\}", tex))
    for name in re.findall(r"includegraphics\[.*?\]\{(.*?)\}", tex):
        assert name in finished[1]
    assert not re.search(r"[^\x00-\x7f\u00c0-\u017f]", tex)


def test_tables_hold_the_numbers_in_full(finished):
    study, written, _ = finished
    table = pd.read_csv(written["tables/results.csv"], index_col=0)
    rows = study.records.images.query("dataset == 'bundled' and protocol == 'uint8_y' and metric == 'psnr'")
    mean = rows[rows["run"] == study.ids["bicubic", 0]]["value"].mean()
    assert table.loc["bicubic", "bundled PSNR (dB)"] == pytest.approx(mean, rel=1e-14)


def test_a_generative_grid_has_its_own_sections(tmp_path):
    study = draw_generative(tmp_path)
    written = build(study, tmp_path / "out")
    html, md = written["report.html"].read_text(), written["report.md"].read_text()
    titles = re.findall(r"<h2>([^<]+?) *<", html)
    assert titles[3:5] == ["Results", "Perception and distortion"]
    assert 'Perception and distortion <span class="badge">exploratory' in html
    assert html.count(REASON) == 1
    assert html.count('<span class="tone warn">not computed</span>') == 10
    assert {"figures/perception.svg", "figures/training.svg", "figures/diagnostics.svg"} <= set(written)
    assert "A run that starts from another is drawn after it" in md


def test_a_grid_without_stages_says_nothing_of_them(finished):
    md = finished[1]["report.md"].read_text()
    assert "*Training loss and validation PSNR: mean over seeds, the band is their range. Validation sees" in md
    assert "starts from another" not in md
    assert "Perception" not in md


def test_an_unfinished_grid_says_what_is_missing(unfinished):
    html, md = unfinished["report.html"], unfinished["report.md"]
    assert html.index("Not finished") < html.index('id="answers"')
    assert "loss &lt;is&gt; not_finite &amp; 50% at step 7" in html
    assert "<pre>Traceback &lt;x&gt;</pre>" in html
    assert "1 failed" in html
    assert "2 pending" in html
    assert r"loss \<is\> not\_finite & 50% at step 7" in md
    assert r"loss $<$is$>$ not\_finite \& 50\% at step 7" in unfinished["report.tex"]
    assert "(preliminary)" in md
    assert "**hard, count=8 vs hard, count=16: not run**" in md
    assert md.count("| hard, count=8 |") >= 2  # in the results and among the runs


def test_a_grid_before_its_first_run_renders(tmp_path):
    study = draw_study(tmp_path)
    study.ids.clear()
    study.statuses.clear()
    study.records = read(study.runs, [])
    text = build(study, tmp_path / "out")["report.md"].read_text()
    assert "13 pending" in text
    assert text.count(": not run**") == 3
    assert "No training curve has been stored yet." in text


class Shown(Balanced):
    """The text of a page, and its elements with their attributes."""

    def __init__(self):
        super().__init__()
        self.text, self.elements = "", []

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read_page(html):
    page = Shown()
    page.feed(html)
    assert page.open == []
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert not str(attributes.get("href", "")).startswith("javascript:")
    return page


def shown(name):
    return " ".join(reveal(name).split())


def test_hostile_names_are_text_in_the_page(hostile):
    html = hostile["report.html"].read_text()
    page = read_page(html)
    text = " ".join(page.text.split())
    for name in (*NAMES, REASON_OF_FAILURE):
        assert shown(name) in text
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.elements if tag == "img")
    assert not re.search("[\u202a-\u202e\u200b\x07]", html)
    assert "<bdi" in html


def test_hostile_names_are_text_in_markdown(hostile):
    source = hostile["report.md"].read_text()
    page = read_page(MarkdownIt("commonmark", {"html": True}).enable("table").render(source))
    text = " ".join(page.text.split())
    for name in (*NAMES, REASON_OF_FAILURE):
        assert shown(name) in text
    assert {tag for tag, _ in page.elements} <= {
        "h1", "h2", "p", "em", "strong", "ins", "ul", "li", "img", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert all(attributes["src"].startswith("figures/") for tag, attributes in page.elements if tag == "img")


def test_hostile_names_are_text_in_figures(hostile):
    labels = ""
    for name, path in hostile.items():
        if name.endswith(".svg"):
            root = ElementTree.parse(path).getroot()
            assert {element.tag.rpartition("}")[2] for element in root.iter()} <= DRAWN
            labels += "\n" + " ".join(" ".join("".join(element.itertext()).split()) for element in root.iter(TEXT))
    for part in ("<script>", r"$ % # & _ ^ ~ { } $x$ \alpha", "xxxxxx…xxxxxx", "[U+202E]txet[U+202C]", "&lt;b&gt; *e*"):
        assert part in labels
    assert 'id="x" url(#x) #26262b' in labels  # neither prefixed nor recoloured


def test_hostile_names_are_text_in_tables(hostile):
    with hostile["tables/results.csv"].open(newline="") as file:
        names = [row[0] for row in csv.reader(file)][1:]
    assert set(names) == {"bicubic", *NAMES[:4], f"'{CELL}"}


def test_the_same_records_give_the_same_bytes(finished, tmp_path):
    study, written, _ = finished
    for name, path in build(study, tmp_path / "again").items():
        assert path.read_bytes() == written[name].read_bytes(), name


def test_missing_templates_are_named(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "REPORTS", tmp_path)
    with pytest.raises(ReportError, match=r"study.mplstyle is missing: reports are rendered from a checkout"):
        build(finished[0], tmp_path / "out")


def test_judging_never_imports_torch():
    code = "import sys, study.analysis.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
