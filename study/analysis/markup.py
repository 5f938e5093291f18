"""Text for the three formats: what each must escape, and figures as they go into a page."""

import re
import unicodedata

from markupsafe import Markup

INK = "#26262b"  # the figures' text and lines; reports/study.mplstyle uses the same


class Tex(str):
    """LaTeX source that is already right; anything else is escaped."""


class Markdown(str):
    """Markdown source that is already right; anything else is escaped."""


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$", "→": r"$\to$",
    "·": r"$\cdot$", "√": r"$\surd$", "α": r"$\alpha$", "δ": r"$\delta$", "Δ": r"$\Delta$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "λ": r"$\lambda$", "µ": r"$\mu$", "μ": r"$\mu$", "²": "$^2$", "³": "$^3$", "…": r"\ldots{}",
    "—": "---", "–": "--", "“": "``", "”": "''", "‘": "`", "’": "'", "▲": r"$\uparrow$", "▼": r"$\downarrow$",
    "\n": " ", "\t": " ",
}  # fmt: skip
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def escape_tex(value: object) -> Tex:
    """Escapes text for LaTeX; letters that pdfLaTeX's standard fonts lack are written as their code point."""
    if isinstance(value, Tex):
        return value
    return Tex("".join(_tex_character(character) for character in str(value)))


def _tex_character(character: str) -> str:
    if character in _TEX:
        return _TEX[character]
    if character.isascii():
        return character if character.isprintable() else " "
    latin = "LATIN" in unicodedata.name(character, "") and ord(character) < 0x180
    return character if latin else f"[U+{ord(character):04X}]"


def escape_markdown(value: object) -> Markdown:
    """Escapes text for Markdown, inside a table as well."""
    if isinstance(value, Markdown):
        return value
    return Markdown(_MARKDOWN.sub(r"\\\1", " ".join(str(value).split())))


def inline_svg(svg: str, name: str, description: str) -> Markup:
    """A figure as an element of a page: ids made unique, its ink the page's text colour, so that it follows the theme.

    Args:
        svg: what matplotlib has written.
        name: prefix of the ids, unique on the page.
        description: what it shows, for who cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = body.replace(INK, "currentColor")
    label = Markup.escape(description)
    return Markup(body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
