import csv
import io
import math
import re

import pytest

from study.analysis.tables import Column, Entry, Table

HOSTILE = "<script>alert(1)</script> & a|b_c 50% $x$ {y} \\z"


@pytest.fixture
def table():
    columns = (
        Column("variant"),
        Column("PSNR", "dB", ".2f", "high", group="Set5"),
        Column("LPIPS", "", ".3f", "low", group="Set5"),
        Column("parameters", "", ",.0f"),
    )
    rows = (
        ("hard", Entry(30.118, "(n = 3)"), 0.1, 61234.0),
        ("soft", Entry(30.121, "(n = 2)", "warn"), 0.2, 61234.0),
        ("bicubic", 29.0, 0.3, None),
        (HOSTILE, math.nan, math.inf, 1.0),
    )
    return Table("main", "Caption <b>.", columns, rows, ("A note & more.",))


def test_marks_follow_the_printed_digits(table):
    # 30.118 and 30.121 both print as 30.12 and share the mark; NaN and infinity have none.
    assert table.marks() == {
        (0, 1): "best", (1, 1): "best", (2, 1): "second",
        (0, 2): "best", (1, 2): "second",
    }  # fmt: skip


def test_a_value_alone_has_no_mark():
    table = Table("one", "", (Column("x", "", ".1f", "high"),), ((1.0,), (None,)))
    assert table.marks() == {}


def test_signed_differences_are_best_near_zero():
    column = Column("high band", "dB", "+.2f", "zero")
    table = Table("one", "", (column,), ((-0.3,), (0.204,), (-0.196,), (1.0,), (math.nan,)))
    assert table.marks() == {(1, 0): "best", (2, 0): "best", (0, 0): "second"}


def test_html(table):
    html = table.to_html()
    assert '<table id="table-main">' in html
    assert "<caption>Caption &lt;b&gt;.</caption>" in html
    assert '<th colspan="2" scope="colgroup" class="group">Set5</th>' in html
    assert (
        '<td class="number" data-value="30.118"><strong>30.12</strong> <span class="suffix">(n = 3)</span></td>' in html
    )
    assert '<span class="tone warn"><strong>30.12</strong> <span class="suffix">(n = 2)</span></span>' in html
    assert '<th scope="row">&lt;script&gt;aler<wbr>t(1)&lt;/script<wbr>&gt; &amp; a|b_c 50% $x$ {y} \\z</th>' in html
    assert "<script" not in html
    assert '<p class="note">A note &amp; more.</p>' in html
    assert html.count("<tr>") == 6


def test_markdown(table):
    lines = table.to_markdown().split("\n")
    assert lines[0] == r"*Caption \<b\>.*"
    assert lines[2] == "| variant | Set5 PSNR (dB) | Set5 LPIPS | parameters |"
    assert lines[3] == "| :-- | --: | --: | --: |"
    assert lines[4] == "| hard | **30.12** (n = 3) | **0.100** | 61,234 |"
    assert lines[6] == "| bicubic | <ins>29.00</ins> | 0.300 | — |"
    assert lines[7].startswith(r"| \<script\>alert(1)\</script\> & a\|b\_c 50% \$x\$ \{y\} \\z | not finite | ∞ |")


def test_latex(table):
    lines = table.to_latex().split("\n")
    assert lines[0] == r"\begin{tabular}{>{\raggedright\arraybackslash}p{24em}rrr}"
    assert lines[2] == r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{Set5} & \multicolumn{1}{c}{} \\"
    assert lines[3] == r"\cmidrule(lr){2-3}"
    assert lines[6] == r"{}hard & \textbf{30.12} (n = 3) & \textbf{0.100} & 61,234 \\"
    assert r"\underline{0.200}" in lines[7]
    assert r"50\% \$x\$ \{y\} \textbackslash{}z" in lines[9]
    assert lines[9].count("&") - lines[9].count(r"\&") == 3
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert r"{}bicubic" in table.to_latex(2, 3)
    assert r"{}hard" not in table.to_latex(2, 3)


def test_csv_holds_full_numbers_and_suffixes(table):
    rows = list(csv.reader(io.StringIO(table.to_csv())))
    assert rows[0] == ["variant", "Set5 PSNR (dB)", "Set5 PSNR (dB) note", "Set5 LPIPS", "parameters"]
    assert rows[1] == ["hard", "30.118", "(n = 3)", "0.1", "61234.0"]
    assert rows[3] == ["bicubic", "29.0", "", "0.3", ""]
    assert rows[4][0] == HOSTILE


def test_minus_signs_are_typographic_and_latex_has_its_own():
    table = Table("m", "", (Column("x", "dB", "+.2f"),), ((-0.5,),))
    assert "−0.50" in table.to_html()
    assert "$-$0.50" in table.to_latex()
    assert "-0.5" in table.to_csv()


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="table short: a row has 1 values, there are 2 columns"):
        Table("short", "", (Column("a"), Column("b")), (("x",),))


def test_a_number_keeps_all_its_digits_for_sorting():
    columns = (Column("x", "", ".1f"), Column("p"))
    rows = (
        (1 / 3, Entry("< 0.0001", order=1e-6)),
        (math.inf, Entry("—", order=math.nan)),
        (math.nan, "text"),
        (-math.inf, None),
    )
    html = Table("t", "", columns, rows).to_html()
    assert re.findall(r'data-value="([^"]*)"', html) == ["0.3333333333333333", "1e-06", "Infinity", "-Infinity"]
    assert '<td class="ordered" data-value="1e-06">&lt; 0.0001</td>' in html


def test_a_detail_is_in_the_page_alone():
    entry = Entry(1.0, "(n = 3)", detail="runs <a>, b")
    table = Table("t", "", (Column("name"), Column("x", "", ".1f")), (("hard", entry),))
    assert (
        '<td class="number" data-value="1.0"><span class="detailed" tabindex="0" aria-describedby="t-0-1">1.0 '
        '<span class="suffix">(n = 3)</span><span class="detail" role="tooltip" id="t-0-1">runs &lt;a&gt;, b</span>'
        "</span></td>"
    ) in table.to_html()
    assert not any("runs" in text for text in (table.to_markdown(), table.to_latex(), table.to_csv()))


def test_csv_holds_no_formula():
    texts = ("=1+1", "+x", "-x", "@x", "\tx", "a\rb", "\ud800", "-0.5", "+0.043", "1e-5", "−0.5", "hard", "")
    table = Table("t", "", (Column("=head"), Column("x")), tuple((text, Entry("a", "=b")) for text in texts))
    rows = list(csv.reader(io.StringIO(table.to_csv(), newline="")))
    assert rows[0] == ["'=head", "x", "x note"]
    assert [row[0] for row in rows[1:]] == [
        "'=1+1", "'+x", "'-x", "'@x", "'\tx", "a b", "\\ud800", "-0.5", "+0.043", "1e-5", "−0.5", "hard", "",
    ]  # fmt: skip
    assert rows[1][2] == "'=b"


def test_long_text_is_wrapped_in_latex():
    columns = (Column("name"), Column("x", "", ".1f"), Column("reason"))
    table = Table("t", "", columns, (("a" * 300, 1.0, "b" * 36), ("c", 2.0, "d" * 37)))
    wide = r">{\raggedright\arraybackslash}"
    assert table.to_latex().startswith(rf"\begin{{tabular}}{{{wide}p{{24em}}r{wide}p{{18em}}}}")
