"""How far protocols and switches move what trained networks score, and the gain of one over another."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context as style_context
from matplotlib.ticker import MaxNLocator

from study import StudyError
from study.analysis.figures import MUTED, WIDTH_IN
from study.analysis.rendering import REPORTS
from study.analysis.results import Measure
from study.analysis.seal import check_figure
from study.analysis.tables import Column, Entry, Table, Value
from study.analysis.verdicts import listed, signed
from study.grid.schema import Analysis

ROLES = ("model", "reference")
PLAIN = "plain"
DECLARED: str = Analysis.model_fields["protocol"].default
KEYS = ["dataset", "metric", "setting", "protocol"]
COLUMNS = 3  # panels side by side
_DIGITS = {"psnr": 3}  # of a move; 5 for a metric that ends at 1
_SHOWN = 1e-9  # no move is smaller, it is the last bits of a mean

Published = Mapping[tuple[str, str, str], float]


def audit_moves(frame: pd.DataFrame, published: Published | None = None) -> pd.DataFrame:
    """Means over images and how far they are from the declared setting, `plain` under `uint8_y`.

    Args:
        frame: `role`, `network`, `dataset`, `image`, `setting`, `protocol`, `metric`, `value`; `role` is one of
            `ROLES`, or all are `model`.
        published: (network, dataset, metric) -> the printed number.

    Returns:
        A row per `dataset`, `metric`, `setting` and `protocol`, with `images` (how many), `model`, `reference`, `gain`
        (model − reference), `model_move`, `reference_move`, `gain_move`, `model_published`, `reference_published`,
        `gain_published` and `gain_off` (gain − published gain). NaN where there is none. A network that a setting does
        not apply to has no move, and counts in the gain with its plain score under the same protocol.
    """
    names = network_names(frame)
    _refuse_gaps(frame)
    means = frame.pivot_table("value", KEYS, "role", sort=False).reindex(columns=list(ROLES))
    plain = means.xs(PLAIN, level="setting")
    scores = means.fillna(plain.reindex(means.index.droplevel("setting")).set_axis(means.index))
    scores["gain"] = scores.model - scores.reference
    declared = plain.assign(gain=plain.model - plain.reference).xs(DECLARED, level="protocol")
    pairs = means.index.droplevel(["setting", "protocol"])
    moves = scores - declared.reindex(pairs).set_axis(means.index)
    moves[list(ROLES)] = moves[list(ROLES)].where(means.notna())
    printed = pd.DataFrame(
        {role: [(published or {}).get((name, *pair), np.nan) for pair in pairs] for role, name in names.items()},
        index=means.index,
    ).reindex(columns=list(ROLES))
    printed["gain"] = printed.model - printed.reference
    images = frame.groupby(KEYS, sort=False).image.nunique().reindex(means.index).rename("images")
    parts = [images, scores, moves.add_suffix("_move"), printed.add_suffix("_published")]
    return pd.concat([*parts, (scores.gain - printed.gain).rename("gain_off")], axis=1).reset_index()


def _refuse_gaps(frame: pd.DataFrame) -> None:
    """A mean over other images, or without those that are not finite, is another number.

    Raises:
        StudyError: a value is not finite, or a setting has images that the other settings of its network have not.
    """
    broken = frame[~np.isfinite(frame.value.to_numpy(float))]
    if len(broken):
        one = broken.iloc[0]
        raise StudyError(
            f"{one.network} under {one.setting}, {one.protocol}: {one.metric} of {one.dataset}/{one.image} is "
            f"{one.value}; an audit needs finite values ({len(broken)} are not)"
        )
    counts = frame.groupby([*KEYS, "role"], sort=False).image.nunique()
    least, most = (counts.groupby("dataset").transform(which) for which in ("min", "max"))
    if (least < most).any():
        *_, role = counts.index[(counts < most).to_numpy()][0]
        raise StudyError(f"an audit needs every image under every setting; {role} has {least.min()} of {most.max()}")


def network_names(frame: pd.DataFrame) -> dict[str, str]:
    """Role -> name of the network."""
    return {str(role): str(names.iloc[0]) for role, names in frame.groupby("role", sort=False).network}


def audit_records(frame: pd.DataFrame, published: Published | None = None) -> list[dict[str, Any]]:
    """The rows of `audit_moves` for JSON: None where there is no number."""
    rows = audit_moves(frame, published).to_dict("records")
    return [{str(key): None if pd.isna(value) else value for key, value in row.items()} for row in rows]


def audit_tables(frame: pd.DataFrame, published: Published | None = None) -> list[Table]:
    """A table for each metric and dataset: levels, gain and moves under every setting, and what follows from them.

    Args:
        frame: as `audit_moves` takes it.
        published: as `audit_moves` takes it; adds the distance to the published gain.
    """
    moves, names = audit_moves(frame, published), network_names(frame)
    return [
        _table(rows, names, Measure(str(dataset), DECLARED, str(metric)))
        for metric, one in moves.groupby("metric", sort=False)
        for dataset, rows in one.groupby("dataset", sort=False)
    ]


def _table(rows: pd.DataFrame, names: Mapping[str, str], measure: Measure) -> Table:
    rows, headings = rows.assign(label=_labels(rows)), _headings(names)
    unit, move = measure.unit, f"+z.{_digits(measure)}f"
    level = f".{_digits(measure)}f"
    columns = [Column("setting")]
    columns += [Column(name, unit, level, group="level") for name in headings.values()]
    columns += [Column(name, unit, move, group="moved by") for name in headings.values()]
    numbers = [*names, *(f"{role}_move" for role in names)]
    if len(names) > 1:
        columns += [Column(name, unit, move, group="gain") for name in ("measured", "moved by")]
        numbers += ["gain", "gain_move"]
    if rows.gain_published.notna().any():
        columns += [Column(name, unit, move, group="gain") for name in ("published", "off by")]
        numbers += ["gain_published", "gain_off"]
    gain = abs(_declared(rows).gain)

    def entry(row: Any, number: str) -> Value:
        value = row[number]
        exceeds = number.endswith("_move") and abs(value) > gain
        return Entry(None if np.isnan(value) else float(value), tone="warn" if exceeds else "")

    body = []
    for _, row in rows.iterrows():
        first = Entry(row.label, "(declared)" if (row.setting, row.protocol) == (PLAIN, DECLARED) else "")
        body.append((first, *(entry(row, number) for number in numbers)))
    count = int(rows.images.iloc[0])
    images = "1 image" if count == 1 else f"{count} images"
    return Table(
        f"audit-{measure.dataset}-{measure.metric}",
        f"{measure.name} on {measure.dataset} ({images}) from the same weights of {listed(list(headings.values()))}.",
        tuple(columns),
        tuple(body),
        tuple(_notes(rows, headings, measure)),
    )


def _headings(names: Mapping[str, str]) -> dict[str, str]:
    """Role -> a name that tells the two apart."""
    alike = len(set(names.values())) < len(names)
    return {role: f"{name} ({role})" if alike else name for role, name in names.items()}


def _digits(measure: Measure) -> int:
    return _DIGITS.get(measure.metric, 5)


def _declared(rows: pd.DataFrame) -> Any:
    """The declared setting's row."""
    return next(row for _, row in rows.iterrows() if (row.setting, row.protocol) == (PLAIN, DECLARED))


def _notes(rows: pd.DataFrame, headings: Mapping[str, str], measure: Measure) -> Iterator[str]:
    if len(headings) > 1:
        yield _gain_note(rows, headings, measure)
    yield _level_note(rows, headings, measure)
    unmoved = [
        f"{name}: {listed(list(settings))}"
        for role, name in headings.items()
        if len(settings := rows[rows[f"{role}_move"].isna()].setting.unique())
    ]
    if unmoved:
        yield f"Not applicable, so the plain level stands ({'; '.join(unmoved)})."
    yield from _published_notes(rows, headings, measure)


def _gain_note(rows: pd.DataFrame, headings: Mapping[str, str], measure: Measure) -> str:
    declared, digits = _declared(rows).gain, _digits(measure)
    low, high = rows.loc[rows.gain.idxmin()], rows.loc[rows.gain.idxmax()]
    furthest = rows.loc[rows.gain_move.abs().idxmax()]
    move = furthest.gain_move
    if abs(move) < _SHOWN:
        judged = "no setting moves it"
    else:
        judged = f"the largest move, {signed(move, measure.unit, digits)} ({furthest.label}), "
        judged += "exceeds the gain" if abs(move) > abs(declared) else "does not exceed the gain"
    if low.gain < 0 < high.gain:
        judged += "; the sign of the gain depends on the setting"
    return (
        f"The gain of {headings['model']} over {headings['reference']} is {signed(declared, measure.unit, digits)} as "
        f"declared and lies between {signed(low.gain, digits=digits)} ({low.label}) and "
        f"{signed(high.gain, measure.unit, digits)} ({high.label}), both networks measured alike; {judged}."
    )


def _level_note(rows: pd.DataFrame, headings: Mapping[str, str], measure: Measure) -> str:
    """The largest move of one network's score, and which exceed the gain."""
    moves = pd.DataFrame({role: rows[f"{role}_move"].abs() for role in headings})

    def furthest(among: pd.DataFrame) -> str:
        role = str(among.max().idxmax())
        row = rows.loc[among[role].idxmax()]
        move = signed(row[f"{role}_move"], measure.unit, _digits(measure))
        return f"{move} ({headings[role]}, {row.label})"

    if len(headings) < 2:
        return f"The largest move is {furthest(moves)}."
    above = moves.max(axis=1) > abs(_declared(rows).gain)
    if not above.any():
        return f"No setting moves a level by more than the gain; the largest move is {furthest(moves)}."
    others = moves.loc[~above]  # the declared setting is always among them
    below = f" The largest move below the gain is {furthest(others)}." if len(others) > 1 else ""
    return (
        f"A level moves by more than the gain in {above.sum()} of {len(rows) - 1} settings ({_grouped(rows, above)}), "
        f"by up to {furthest(moves)}: a score measured so is not to be compared with one measured as declared.{below}"
    )


def _grouped(rows: pd.DataFrame, chosen: pd.Series) -> str:
    """Some of the rows in words, those of one setting together."""
    parts = []
    for setting, part in rows[chosen].groupby("setting", sort=False):
        protocols = (rows.setting == setting).sum()
        if protocols == 1:
            parts.append(str(setting))
        elif len(part) == protocols:
            parts.append(f"{setting} under every protocol")
        else:
            parts.append(f"{setting} under {listed(part.protocol.tolist())}")
    return "; ".join(parts)


def _published_notes(rows: pd.DataFrame, headings: Mapping[str, str], measure: Measure) -> Iterator[str]:
    """Which settings give the printed digits."""
    for role, name in headings.items():
        printed = rows[f"{role}_published"].iloc[0]
        if np.isnan(printed):
            continue
        digits = format(printed, measure.format)
        same = pd.Series([format(level, measure.format) == digits for level in rows[role]], index=rows.index)
        same &= rows[f"{role}_move"].notna()
        given = _grouped(rows, same) or "no setting"
        yield f"The published level of {name}, {measure.text(printed)}, is given to the digit by: {given}."
    if rows.gain_published.notna().any():
        known = f"±{_last_digit(measure):g} {measure.unit}".rstrip()
        yield f"A published gain is the difference of two rounded numbers, so it is known to {known}."


def _last_digit(measure: Measure) -> float:
    """One in the last printed digit."""
    return 10.0 ** -int(measure.format[1:-1])


def _labels(rows: pd.DataFrame) -> list[str]:
    """What each row is called: its setting, and the protocol where the setting has several."""
    pairs = list(dict.fromkeys(zip(rows.setting, rows.protocol, strict=True)))
    several = {setting for setting, count in Counter(setting for setting, _ in pairs).items() if count > 1}
    return [
        f"{setting}, {protocol}" if setting in several else setting
        for setting, protocol in zip(rows.setting, rows.protocol, strict=True)
    ]


def draw_audit(frame: pd.DataFrame, published: Published | None = None, metric: str = "psnr") -> Figure:
    """The gain under every setting, a panel per dataset; of one network alone, how far its level moves.

    The declared setting has a mark of its own and a line through all rows, and so has the published gain, with bars
    for the rounding of its two numbers.

    Args:
        frame: as `audit_moves` takes it.
        published: as `audit_moves` takes it.
        metric: which one is drawn.
    """
    moves = audit_moves(frame, published)
    moves, headings = moves.query("metric == @metric"), _headings(network_names(frame))
    column, what = (
        ("gain", f"gain of {headings['model']} over {headings['reference']}")
        if len(headings) > 1
        else ("model_move", f"move of {headings['model']} from the declared setting")
    )
    moves = moves.assign(label=_labels(moves))
    order = list(moves.label.unique())
    datasets = list(moves.dataset.unique())
    has_published = bool(len(headings) > 1 and moves.gain_published.notna().any())
    across = min(COLUMNS, len(datasets))
    down = -(-len(datasets) // across)
    figure = Figure(figsize=(WIDTH_IN, 0.5 + down * (0.45 + 0.2 * (len(order) + has_published))))
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, dataset in zip(grid.flat, datasets, strict=False):
        _draw_dataset(axes, moves.query("dataset == @dataset"), order, column, Measure(str(dataset), DECLARED, metric))
    for axes in grid.flat[len(datasets) :]:
        axes.set_visible(False)
    declared = _declared(moves).label
    labels = [f"{label} (declared)" if label == declared else label for label in order]
    grid[0, 0].set_yticks(range(len(order) + has_published), [*labels, *["published"] * has_published])
    grid[0, 0].set_ylim(len(order) + has_published - 0.4, -0.6)
    measure = Measure("", DECLARED, metric)
    label = f"{what}, {measure.name}" + (f" ({measure.unit})" if measure.unit else "")
    figure.supxlabel(textwrap.fill(label, 85), fontsize=9)
    return figure


def _draw_dataset(axes: Axes, rows: pd.DataFrame, order: list[tuple[str, str]], column: str, measure: Measure) -> None:
    colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    declared = _declared(rows)[column]
    axes.axvline(declared, color=colours[1], linewidth=1, linestyle="--")
    axes.axvline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8)
    for _, row in rows.iterrows():
        chosen = (row.setting, row.protocol) == (PLAIN, DECLARED)
        style = {"marker": "D", "color": colours[1]} if chosen else {"marker": "o", "color": colours[0]}
        axes.plot([row[column]], [order.index(row.label)], linestyle="none", markersize=6 if chosen else 5, **style)
    published = rows.gain_published.iloc[0]
    if np.isfinite(published):
        style = {"marker": "X", "markersize": 7, "color": colours[2], "linestyle": "none"}
        axes.errorbar(published, len(order), xerr=_last_digit(measure), capsize=3, elinewidth=1, **style)
        axes.axhspan(len(order) - 0.5, len(order) + 0.5, color=MUTED, alpha=0.12, linewidth=0)
    axes.set_title(textwrap.fill(measure.dataset, 22))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def save_audit(frame: pd.DataFrame, path: Path, published: Published | None = None) -> None:
    """Draws the audit into a PNG file; `seal.check_figure` refuses what could not be drawn."""
    check_figure(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(), style_context(["default", REPORTS / "study.mplstyle"]):
        draw_audit(frame, published).savefig(path, dpi=200, bbox_inches="tight", metadata={"Software": None})
