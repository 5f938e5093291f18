"""From a comparison's numbers to a verdict and a paragraph in plain words."""

from collections.abc import Sequence

import numpy as np

from study.analysis.comparisons import CLAIM_NAMES, TEST_NAMES, Comparison
from study.analysis.power import SEEDS_LIMIT

VERDICTS = {
    "better": "the difference is in favour of the first, beyond chance at the declared level",
    "worse": "the difference is in favour of the second, beyond chance at the declared level",
    "equivalent": "the difference lies inside the declared margin",
    "inconclusive": "neither a difference nor equivalence could be shown",
    "n too small": "the design could not have shown a difference, whatever the values",
    "no variance": "the seeds do not differ, so that nothing can be tested",
    "not comparable": "the two solve different tasks",
    "not run": "one side has no finished run",
}


def decide(comparison: Comparison) -> str:
    """The verdict, a key of `VERDICTS`; equivalence first, since a difference inside the margin counts as none."""
    if not comparison.comparable:
        return "not comparable"
    if not comparison.deltas.values.size:
        return "not run"
    if len(comparison.deltas.seeds) > 1 and comparison.test.problem.startswith("all seeds"):
        return "no variance"
    if np.isnan(comparison.test.p):
        return "n too small"
    if comparison.p_equivalent <= comparison.alpha:
        return "equivalent"
    if comparison.smallest_p > comparison.alpha:
        return "n too small"
    if comparison.p_corrected <= comparison.alpha:
        return "better" if (comparison.test.direction < 0) == (comparison.measure.best == "low") else "worse"
    return "inconclusive"


def signed(value: float, unit: str = "", digits: int = 3) -> str:
    """A difference with its sign, such as `+0.043 dB`; the minus is the typographic one."""
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return f"{text} {unit}".strip()


def interval(low: float, high: float, digits: int = 3) -> str:
    """An interval such as `[−0.012, +0.074]`, or a dash where there is none."""
    return "—" if np.isnan(low) else f"[{signed(low, digits=digits)}, {signed(high, digits=digits)}]"


def listed(words: Sequence[str]) -> str:
    """Words in a row, such as `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def p_text(p: float) -> str:
    """A p value with two significant digits, never rounded to zero, and never to 0.05 from one side or the other."""
    if np.isnan(p):
        return "—"
    text = "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
    return f"{p:.4f}" if text == "0.05" and p != 0.05 else text


def coverage(alpha: float) -> str:
    """The level of an interval, such as `95%` or `99.9%`."""
    return f"{100 * (1 - alpha):g}%"


def share(part: float) -> str:
    """A share in percent; 0% and 100% are none and all."""
    return f"{part:.0%}" if part in (0, 1) else f"{min(max(100 * part, 1), 99):.0f}%"


def digits_of(comparison: Comparison) -> int:
    """Decimals to print: SSIM differences are about a hundred times smaller than those of PSNR in dB."""
    return 3 if comparison.measure.metric == "psnr" else 5


def describe(comparison: Comparison) -> str:
    """One paragraph: the estimate, its interval, the claim, the test, the verdict, and what limits it."""
    verdict = decide(comparison)
    if verdict in ("not run", "not comparable"):
        return f"{verdict.capitalize()}: {_absence(comparison, verdict)}."
    sentences = [_estimate(comparison), _conclusion(comparison, verdict), _limits(comparison), _gaps(comparison)]
    return " ".join(sentence for sentence in sentences if sentence)


def _absence(comparison: Comparison, verdict: str) -> str:
    if verdict == "not comparable":
        return "the two cells differ in scale"
    if comparison.deltas.seeds_not_finite:
        names = ", ".join(map(str, comparison.deltas.seeds_not_finite))
        return f"no finite value of {comparison.measure} on both sides; not finite: seeds {names}"
    missing = ", ".join(map(str, comparison.deltas.seeds_missing)) or "all"
    return f"no seed is finished on both sides with values for {comparison.measure}; missing seeds: {missing}"


def _estimate(comparison: Comparison) -> str:
    digits, unit = digits_of(comparison), comparison.measure.unit
    deltas, test = comparison.deltas, comparison.test
    lower = ", where lower is better" if comparison.measure.best == "low" else ""
    text = f"Mean difference {signed(comparison.mean, unit, digits)} in {comparison.measure}{lower}"
    if not np.isnan(test.low):
        about = ""
        if comparison.claim == "these_weights":
            about = f" of the pseudo-median {signed(test.estimate, unit, digits)}"
        text += f", {coverage(comparison.alpha)} interval{about} {interval(test.low, test.high, digits)}"
    seeds, images = len(deltas.seeds), len(deltas.images)
    return f"{text}, over {seeds} seed{_s(seeds)} and {images} image{_s(images)}."


def _conclusion(comparison: Comparison, verdict: str) -> str:
    claim = f"Claim '{CLAIM_NAMES[comparison.claim]}' ({TEST_NAMES[comparison.claim]})"
    digits, unit, test = digits_of(comparison), comparison.measure.unit, comparison.test
    if verdict == "no variance":
        return f"{claim}: no variance: {test.problem}."
    if verdict == "n too small":
        why = test.problem or (
            f"the smallest {'corrected ' * (comparison.family > 1)}p with {len(comparison.deltas.images)} images is "
            f"{p_text(comparison.smallest_p)}, above α = {comparison.alpha:g}"
        )
        return f"{claim}: n too small: {why}."
    p = f"p = {p_text(test.p)}".replace("= <", "<")
    if comparison.family > 1 and comparison.p_corrected != test.p:
        p += f", {p_text(comparison.p_corrected)} after correction over {comparison.family} comparisons"
    text = f"{claim}: {verdict} ({p})."
    margin = f"the margin of {comparison.margin:g} {unit}"
    if verdict == "equivalent":
        what = "the pseudo-median lies " if comparison.claim == "these_weights" else ""
        text = f"{claim}: equivalent: {what}inside {margin} (TOST p = {p_text(comparison.p_equivalent)})".replace(
            "= <", "<"
        )
        beyond = comparison.p_corrected <= comparison.alpha
        return text + (f"; a difference is there ({p}), but too small to matter." if beyond else ".")
    if verdict == "inconclusive":
        return f"{text} {_reach(comparison, digits, unit)}".strip()
    if np.isfinite(comparison.margin) and abs(comparison.estimate) < comparison.margin:
        text += f" The estimate is smaller than {margin}, though equivalence is not shown."
    improved = f"{share(comparison.share_improved)} of the images are better"
    return f"{text} {improved} (rank-biserial {signed(comparison.rank_biserial, digits=2)})."


def _reach(comparison: Comparison, digits: int, unit: str) -> str:
    parts = []
    if np.isfinite(comparison.detectable):
        found = f"{comparison.detectable:.{digits}f} {unit}".strip()
        parts.append(f"The smallest effect this design finds with power {comparison.power:g} is about {found}.")
    if np.isfinite(comparison.margin):
        margin = f"{comparison.margin:g} {unit}"
        if not np.isnan(comparison.needed_to_find):
            needed = counted(comparison.needed_to_find, comparison)
            parts.append(f"Finding a true difference of {margin} takes {needed}, if their spread is as it was here.")
        parts.append(f"Equivalence within {margin}: {attainability(comparison)}.")
    return " ".join(parts)


def counted(needed: float, comparison: Comparison) -> str:
    """A needed number of seeds or images in words."""
    count = f"more than {SEEDS_LIMIT:,}" if np.isinf(needed) else f"about {needed:.0f}"
    return f"{count} {units(comparison)}"


def units(comparison: Comparison) -> str:
    """What the claim's design gets more of: `seeds` or `images`."""
    return "images" if comparison.claim == "these_weights" else "seeds"


def attainability(comparison: Comparison) -> str:
    """Whether the design could have shown equivalence within the margin, and what it would take."""
    if comparison.test.low > comparison.margin or comparison.test.high < -comparison.margin:
        return "no, the whole interval lies beyond the margin"
    unit = units(comparison)
    have = len(comparison.deltas.images if unit == "images" else comparison.deltas.seeds)
    if np.isnan(comparison.needed):
        return "not attainable, too little is known of the spread"
    if np.isinf(comparison.needed):
        return "not attainable with these images at any number of seeds" if unit == "seeds" else "not attainable"
    if comparison.needed <= have:
        return "attainable, not shown"
    return f"not attainable, needs about {comparison.needed:.0f} {unit} of this spread"


def _limits(comparison: Comparison) -> str:
    """The spread over protocols, where the difference is smaller than it."""
    if not abs(comparison.mean) < comparison.protocol_spread:
        return ""
    spread = f"{comparison.protocol_spread:.{digits_of(comparison)}f} {comparison.measure.unit}".strip()
    return f"The difference is smaller than its own spread over evaluation protocols ({spread})."


def _gaps(comparison: Comparison) -> str:
    parts = []
    if comparison.deltas.seeds_missing:
        names = ", ".join(map(str, comparison.deltas.seeds_missing))
        parts.append(f"Preliminary: seed{_s(len(comparison.deltas.seeds_missing))} {names} missing on one side.")
    if comparison.deltas.seeds_not_finite:
        names = ", ".join(map(str, comparison.deltas.seeds_not_finite))
        many = len(comparison.deltas.seeds_not_finite)
        parts.append(f"Preliminary: seed{_s(many)} {names} left out, without a finite value: that is a result, too.")
    if comparison.deltas.images_missing:
        names = ", ".join(comparison.deltas.images_missing)
        parts.append(f"Preliminary: images left out, value absent or not finite: {names}.")
    return " ".join(parts)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
