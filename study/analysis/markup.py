"""Text for the three formats: what each must escape, and figures as they go into a page."""

import re
import unicodedata
from collections.abc import Callable

from markupsafe import Markup

INK = "#26262b"  # the figures' text and lines; reports/study.mplstyle uses the same


class Tex(str):
    """LaTeX source that is already right; anything else is escaped."""


class Markdown(str):
    """Markdown source that is already right; anything else is escaped."""


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$", "→": r"$\to$",
    "·": r"$\cdot$", "√": r"$\surd$", "α": r"$\alpha$", "δ": r"$\delta$", "Δ": r"$\Delta$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "λ": r"$\lambda$", "µ": r"$\mu$", "μ": r"$\mu$", "²": "$^2$", "³": "$^3$", "…": r"\ldots{}",
    "—": r"\textemdash{}", "–": r"\textendash{}", "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}",
    "‘": r"\textquoteleft{}", "’": r"\textquoteright{}", "▲": r"$\uparrow$", "▼": r"$\downarrow$",
    "\n": " ", "\r": " ", "\t": " ",
}  # fmt: skip
_NO_T1 = "ĦħĸĿŀŉŦŧſ"  # Latin letters that LaTeX's T1 fonts lack
_LIGATURE = re.compile(r"([-,'])(?=\1)")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$]|&(?=#?\w+;))")
_BULLET, _NUMBER = re.compile(r"^(?=[-+=]+(?:\s|$))"), re.compile(r"^(\d+)(?=[.)](?:\s|$))")
# Controls, direction marks and overrides, zero-width and filler characters, lone surrogates. Joiners and variation
# selectors belong to emoji and to scripts other than Latin; next to ASCII they are there to deceive.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
    "|(?<![^\x00-\x7f])[\u200c\u200d\ufe00-\ufe0f]"
)
_LONG_WORD = re.compile(r"[^\s-]{25,}")
_PIECE = 12  # characters between the places at which a long word may be broken


def reveal(text: str) -> str:
    """Text in which what nobody can see, or what turns the line around, stands as its code point: `[U+202E]`."""
    return _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def one_line(text: str) -> str:
    """Text of a label: nothing hidden, no line breaks."""
    return " ".join(reveal(text).split())


def cut(text: str, longest: int) -> str:
    """Text without its middle where it has more than `longest` characters."""
    tail = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"


def escape_html(value: object) -> Markup:
    """Escapes text for HTML, in an element or an attribute."""
    return value if isinstance(value, Markup) else Markup.escape(reveal(str(value)))


def breakable_html(value: object) -> Markup:
    """Escapes text for an element as narrow as a table's cell: a very long word may be broken."""
    if isinstance(value, Markup):
        return value
    return Markup(_broken(reveal(str(value)), Markup.escape, "<wbr>"))


def escape_tex(value: object) -> Tex:
    """Escapes text for LaTeX; letters that pdfLaTeX's standard fonts lack are written as their code point."""
    return value if isinstance(value, Tex) else Tex(_broken(str(value), _tex, r"\allowbreak{}"))


def _broken(text: str, escape: Callable[[str], str], joint: str) -> str:
    """Escapes text, with `joint` wherever a very long word may be broken."""
    parts, last = [], 0
    for word in _LONG_WORD.finditer(text):
        pieces = [escape(word[0][start : start + _PIECE]) for start in range(0, len(word[0]), _PIECE)]
        parts += [str(escape(text[last : word.start()])), joint.join(map(str, pieces))]
        last = word.end()
    return "".join([*parts, str(escape(text[last:]))])


def _tex(text: str) -> str:
    return _LIGATURE.sub(r"\1{}", "".join(_tex_character(character) for character in text))


def _tex_character(character: str) -> str:
    if character in _TEX:
        return _TEX[character]
    if character.isascii() and character.isprintable():
        return character
    latin = "LATIN" in unicodedata.name(character, "") and ord(character) < 0x180 and character not in _NO_T1
    return character if latin else rf"[U+{ord(character):04X}]\allowbreak{{}}"


def escape_markdown(value: object) -> Markdown:
    """Escapes text for Markdown, inside a table as well."""
    if isinstance(value, Markdown):
        return value
    text = _MARKDOWN.sub(r"\\\1", " ".join(reveal(str(value)).split()))
    return Markdown(_NUMBER.sub(r"\1\\", _BULLET.sub(r"\\", text)))


def inline_svg(svg: str, name: str, description: str) -> Markup:
    """A figure as an element of a page: ids made unique, its ink the page's text colour, so that it follows the theme.

    Args:
        svg: what matplotlib has written.
        name: prefix of the ids, unique on the page.
        description: what it shows, for who cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    # Tags alone: the text between them may hold a name that looks like an attribute.
    body = re.sub(r"<[^>]+>", lambda tag: _own_tag(tag[0], name), reveal(body))
    label = escape_html(description)
    return Markup(body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def _own_tag(tag: str, name: str) -> str:
    # A picture's id is a hash that nothing refers to, so that two equal pictures would share it.
    tag = re.sub(r'\bid="([^"]+)"', "" if tag.startswith("<image") else rf'id="{name}-\1"', tag)
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", tag)
    return re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', tag).replace(INK, "currentColor")
