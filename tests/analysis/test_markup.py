import re

from markupsafe import Markup

from study.analysis.markup import INK, Markdown, Tex, escape_markdown, escape_tex, inline_svg


def test_tex_escapes_everything_that_latex_reads():
    assert escape_tex(r"a_b & 50% {x} $y$ #1 ~ ^ \end") == (
        r"a\_b \& 50\% \{x\} \$y\$ \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}end"
    )
    assert escape_tex("−0.1 dB ≤ α") == r"$-$0.1 dB $\leq$ $\alpha$"
    assert escape_tex("é 図\n") == r"é [U+56F3]\allowbreak{} "
    assert escape_tex(Tex(r"\alpha")) == r"\alpha"


def test_markdown_escapes_tables_and_tags():
    assert escape_markdown("a|b <i> *c* `d`\ne_f") == r"a\|b \<i\> \*c\* \`d\` e\_f"
    assert escape_markdown(Markdown("**x**")) == "**x**"


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
