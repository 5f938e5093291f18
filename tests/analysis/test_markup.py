import re

from markupsafe import Markup

from study.analysis.markup import (
    INK,
    Markdown,
    Tex,
    breakable_html,
    cut,
    escape_html,
    escape_markdown,
    escape_tex,
    inline_svg,
    one_line,
    reveal,
)


def test_tex_escapes_everything_that_latex_reads():
    assert escape_tex(r"a_b & 50% {x} $y$ #1 ~ ^ \end") == (
        r"a\_b \& 50\% \{x\} \$y\$ \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}end"
    )
    assert escape_tex("−0.1 dB ≤ α") == r"$-$0.1 dB $\leq$ $\alpha$"
    assert escape_tex("é 図\nħ\x07") == r"é [U+56F3]\allowbreak{} [U+0127]\allowbreak{}[U+0007]\allowbreak{}"
    assert escape_tex(Tex(r"\alpha")) == r"\alpha"


def test_tex_has_no_ligatures_that_change_a_name():
    assert escape_tex("a--b ,, ''") == "a-{}-b ,{}, '{}'"
    assert escape_tex('"`') == r"\textquotedbl{}\textasciigrave{}"
    assert escape_tex("“a” – —") == r"\textquotedblleft{}a\textquotedblright{} \textendash{} \textemdash{}"


def test_markdown_escapes_tables_and_tags():
    assert escape_markdown("a|b <i> *c* `d`\ne_f") == r"a\|b \<i\> \*c\* \`d\` e\_f"
    assert escape_markdown("&lt; &#60; A & B") == r"\&lt; \&\#60; A & B"
    assert escape_markdown(Markdown("**x**")) == "**x**"


def test_markdown_makes_no_list_of_a_line():
    assert [escape_markdown(text) for text in ("- x", "1. x", "12) x", "===")] == [
        r"\- x",
        r"1\. x",
        r"12\) x",
        r"\===",
    ]
    assert [escape_markdown(text) for text in ("+0.043", "1.5 dB", "-x", "3")] == ["+0.043", "1.5 dB", "-x", "3"]


def test_what_nobody_sees_is_shown_as_its_code_point():
    assert reveal("a\u202eb\u200bc\x07\ud800") == "a[U+202E]b[U+200B]c[U+0007][U+D800]"
    assert reveal("ha\u200drd") == "ha[U+200D]rd"
    kept = "\U0001f469\u200d\U0001f680 \u2764\ufe0f \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 é\n\t"
    assert reveal(kept) == kept


def test_html_is_escaped_once():
    assert escape_html("<b>&\u202e") == "&lt;b&gt;&amp;[U+202E]"
    assert escape_html(Markup("<b>x</b>")) == "<b>x</b>"
    assert escape_html(7) == "7"


def test_only_very_long_words_may_be_broken():
    assert breakable_html("catanet-hard-assignment-x2 and 24-letters") == "catanet-hard-assignment-x2 and 24-letters"
    assert breakable_html("<" * 25) == f"{'&lt;' * 12}<wbr>{'&lt;' * 12}<wbr>&lt;"
    piece = r"\_" * 12
    assert escape_tex("_" * 25) == rf"{piece}\allowbreak{{}}{piece}\allowbreak{{}}\_"


def test_labels_lose_their_middle():
    assert one_line(" a\n b\u200bc ") == "a b[U+200B]c"
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghijk", 10) == "abcde…hijk"
    assert len(cut("x" * 300, 17)) == 17


def test_inline_svg_has_ids_of_its_own_and_the_pages_ink():
    svg = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="1"><metadata><x/></metadata>'
        f'<g id="a" clip-path="url(#p1)" style="fill: {INK}"/><use xlink:href="#m2"/></svg>'
    )
    found = inline_svg(svg, "forest", 'a "b" <c>')
    assert isinstance(found, Markup)
    assert found.startswith('<svg role="img" aria-label="a &#34;b&#34; &lt;c&gt;" width="1">')
    assert 'id="forest-a"' in found
    assert "url(#forest-p1)" in found
    assert '"#forest-m2"' in found
    assert "currentColor" in found
    assert not re.search(f"{INK}|metadata|DOCTYPE", found)


def test_a_name_in_a_drawing_stays_as_it_is():
    svg = (
        f'<svg width="1"><!-- id="a" --><text id="t">id="a" url(#a) href="#a" {INK} \u202e</text><image id="i"/></svg>'
    )
    found = inline_svg(svg, "forest", "x")
    assert f'<text id="forest-t">id="a" url(#a) href="#a" {INK} [U+202E]</text>' in found
    assert "<!--" not in found
    assert "<image />" in found  # two equal pictures would share an id
