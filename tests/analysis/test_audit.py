import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from study import StudyError
from study.analysis.audit import audit_moves, audit_records, audit_tables, draw_audit, network_names, save_audit

PUBLISHED = {("new", "Set5", "psnr"): 32.25, ("old", "Set5", "psnr"): 32.0}
LEVELS = {
    ("plain", "uint8_y"): (32.25, 32.0),
    ("plain", "rgb"): (30.25, 30.125),
    ("border kept", "uint8_y"): (32.125, 31.875),
    ("self-ensemble", "uint8_y"): (32.625, 32.25),
    ("self-ensemble", "rgb"): (30.5, 30.25),
    ("blend: averaged", "uint8_y"): (32.25, None),
}


def frame(levels=LEVELS, names=("new", "old"), datasets=("Set5",), metrics=("psnr",)) -> pd.DataFrame:
    """Two images around every level, which binary fractions hold exactly."""
    rows = [
        {"role": role, "network": name, "dataset": dataset, "image": image, "setting": setting, "protocol": protocol}
        | {"metric": metric, "value": level + offset}
        for dataset in datasets
        for image, offset in (("a", -1.0), ("b", 1.0))
        for place, (role, name) in enumerate(zip(("model", "reference"), names, strict=False))
        for (setting, protocol), pair in levels.items()
        for metric in metrics
        if (level := pair[place]) is not None
    ]
    return pd.DataFrame(rows)


def row(moves: pd.DataFrame, setting: str, protocol: str = "uint8_y") -> pd.Series:
    return moves[(moves.setting == setting) & (moves.protocol == protocol)].iloc[0]


def test_levels_gains_and_moves_by_hand() -> None:
    moves = audit_moves(frame())
    assert list(zip(moves.setting, moves.protocol, strict=True)) == list(LEVELS)
    declared, ensemble = row(moves, "plain"), row(moves, "self-ensemble")
    assert (declared.model, declared.reference, declared.gain, declared.images) == (32.25, 32.0, 0.25, 2)
    assert (declared.model_move, declared.reference_move, declared.gain_move) == (0, 0, 0)
    assert (ensemble.model_move, ensemble.reference_move, ensemble.gain_move) == (0.375, 0.25, 0.125)
    rgb = row(moves, "plain", "rgb")
    assert (rgb.gain, rgb.model_move, rgb.gain_move) == (0.125, -2.0, -0.125)
    assert moves.gain_published.isna().all()


def test_a_setting_that_a_network_does_not_have_leaves_its_plain_level() -> None:
    averaged = row(audit_moves(frame({**LEVELS, ("blend: averaged", "uint8_y"): (32.5, None)})), "blend: averaged")
    assert (averaged.reference, averaged.gain, averaged.gain_move) == (32.0, 0.5, 0.25)
    assert math.isnan(averaged.reference_move)
    assert averaged.model_move == 0.25


def test_a_setting_of_the_reference_alone_moves_the_gain_too() -> None:
    moves = audit_moves(frame({**LEVELS, ("padding: masked", "uint8_y"): (None, 32.125)}))
    masked = row(moves, "padding: masked")
    assert (masked.model, masked.gain, masked.gain_move, masked.reference_move) == (32.25, 0.125, -0.125, 0.125)
    assert math.isnan(masked.model_move)


def test_datasets_and_metrics_are_kept_apart() -> None:
    one, other = frame(), frame(dict.fromkeys(LEVELS, (32.0, 32.0)), datasets=("B100",), metrics=("psnr", "ssim"))
    moves = audit_moves(pd.concat([one, other]))
    gains = moves[moves.setting == "plain"].groupby(["dataset", "metric"]).gain.first()
    assert gains.to_dict() == {("Set5", "psnr"): 0.25, ("B100", "psnr"): 0.0, ("B100", "ssim"): 0.0}
    names = [table.name for table in audit_tables(pd.concat([one, other]))]
    assert names == ["audit-Set5-psnr", "audit-B100-psnr", "audit-B100-ssim"]


def test_the_table_names_the_largest_moves_and_marks_those_above_the_gain() -> None:
    (table,) = audit_tables(frame())
    assert [f"{column.group} {column.name}".strip() for column in table.columns] == [
        "setting", "level new", "level old", "moved by new", "moved by old", "gain measured",
        "gain moved by",
    ]  # fmt: skip
    cells = {cells[0].value: cells[1:] for cells in table.entries()}
    assert [entry.value for entry in cells["self-ensemble, uint8_y"]] == [32.625, 32.25, 0.375, 0.25, 0.375, 0.125]
    # the reference's move equals the gain and is not more
    assert [entry.tone for entry in cells["self-ensemble, uint8_y"]] == ["", "", "warn", "", "", ""]
    assert [entry.value for entry in cells["blend: averaged"]] == [32.25, 32.0, 0.0, None, 0.25, 0.0]
    assert table.entries()[0][0].suffix == "(declared)"
    gain, level, absent = table.notes
    assert gain.startswith("The gain of new over old is +0.250 dB as declared and lies between +0.125 (plain, rgb)")
    assert "and +0.375 dB (self-ensemble, uint8_y)" in gain
    assert gain.endswith("does not exceed the gain.")
    assert level.startswith(
        "A level moves by more than the gain in 3 of 5 settings (plain under rgb; self-ensemble under every protocol), "
        "by up to −2.000 dB (new, plain, rgb)"
    )
    assert level.endswith("The largest move below the gain is −0.125 dB (new, border kept).")
    assert absent == "Not applicable, so the plain level stands (old: blend: averaged)."


def test_a_gain_that_a_setting_turns_round_is_said() -> None:
    levels = {("plain", "uint8_y"): (32.125, 32.0), ("self-ensemble", "uint8_y"): (32.125, 32.25)}
    gain, level = audit_tables(frame(levels))[0].notes
    assert "the largest move, −0.250 dB (self-ensemble), exceeds the gain" in gain
    assert gain.endswith("the sign of the gain depends on the setting.")
    assert "in 1 of 1 settings (self-ensemble)" in level
    assert "below the gain" not in level


def test_where_nothing_moves_it_is_said() -> None:
    levels = {("plain", "uint8_y"): (32.5, 32.0), ("plain", "float_y"): (32.5, 32.0)}
    gain, level = audit_tables(frame(levels))[0].notes
    assert gain.endswith("no setting moves it.")
    assert level.startswith("No setting moves a level by more than the gain; the largest move is +0.000 dB")


def test_published_gains_stand_beside_and_the_digits_are_looked_for() -> None:
    levels = {**LEVELS, ("plain", "float_y"): (32.2539, 32.0078)}
    table = audit_tables(frame(levels), PUBLISHED)[0]
    assert [f"{column.group} {column.name}" for column in table.columns[-2:]] == ["gain published", "gain off by"]
    rows = {cells[0].value: [entry.value for entry in cells[-2:]] for cells in table.entries()}
    assert rows["plain, uint8_y"] == [0.25, 0.0]
    assert rows["self-ensemble, uint8_y"] == [0.25, 0.125]
    assert table.notes[3] == (
        "The published level of new, 32.25 dB, is given to the digit by: plain under uint8_y and float_y; "
        "blend: averaged."
    )
    assert table.notes[4] == "The published level of old, 32.00 dB, is given to the digit by: plain under uint8_y."
    assert table.notes[5].endswith("known to ±0.01 dB.")


def test_one_published_level_gives_no_published_gain() -> None:
    table = audit_tables(frame(), {("old", "Set5", "psnr"): 33.0})[0]
    assert table.columns[-1].name == "moved by"
    assert table.notes[-1] == "The published level of old, 33.00 dB, is given to the digit by: no setting."


def test_one_network_alone_has_levels_and_no_gain() -> None:
    (table,) = audit_tables(frame(names=("new",)))
    assert [column.group for column in table.columns] == ["", "level", "moved by"]
    assert table.notes == ("The largest move is −2.000 dB (new, plain, rgb).",)
    assert not any(entry.tone for cells in table.entries() for entry in cells)


def test_two_networks_of_one_name_are_told_apart() -> None:
    assert network_names(frame(names=("imdn", "imdn"))) == {"model": "imdn", "reference": "imdn"}
    (table,) = audit_tables(frame(names=("imdn", "imdn")))
    assert [column.name for column in table.columns[1:3]] == ["imdn (model)", "imdn (reference)"]


def test_records_are_json_numbers_or_none() -> None:
    records = audit_records(frame(), PUBLISHED)
    assert len(records) == len(LEVELS)
    assert records[-1]["reference_move"] is None
    assert (records[0]["gain"], records[0]["gain_published"], records[0]["gain_off"]) == (0.25, 0.25, 0.0)
    assert type(records[0]["images"]) is int


@pytest.mark.usefixtures("style")
def test_the_figure_has_a_dot_per_setting_and_its_own_marks_for_declared_and_published() -> None:
    figure = draw_audit(frame(datasets=("Set5", "Set14", "B100", "Urban100")), PUBLISHED)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["Set5", "Set14", "B100", "Urban100"]
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels[0] == "plain, uint8_y (declared)"
    assert labels[2] == "border kept"
    assert labels[-1] == "published"
    dots = {marker: [] for marker in "DoX"}
    for line in panels[0].get_lines():
        if line.get_marker() in dots:
            dots[str(line.get_marker())] += np.asarray(line.get_xydata()).tolist()
    assert dots["D"] == [[0.25, 0]]
    assert dots["o"] == [[0.125, 1], [0.25, 2], [0.375, 3], [0.25, 4], [0.25, 5]]
    assert dots["X"] == [[0.25, len(LEVELS)]]
    assert not any(line.get_marker() == "X" for line in panels[1].get_lines())
    assert figure.get_supxlabel() == "gain of new over old, PSNR (dB)"


@pytest.mark.usefixtures("style")
def test_of_one_network_the_figure_shows_how_far_it_moves() -> None:
    figure = draw_audit(frame(names=("new",)), PUBLISHED)
    (axes,) = figure.axes
    found = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
    assert np.concatenate(found).tolist() == [-2.0, -0.125, 0.375, -1.75, 0.0]
    assert "published" not in [label.get_text() for label in axes.get_yticklabels()]


def test_a_figure_is_saved_as_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "one.png", tmp_path / "two.png"]
    for path in paths:
        save_audit(frame(), path, PUBLISHED)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as drawn:
        assert drawn.width > 1000


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(value: float) -> None:
    rows = frame()
    rows.loc[3, "value"] = value
    with pytest.raises(StudyError, match=r"psnr of Set5/a is (nan|-inf); an audit needs finite values \(1 are not\)"):
        audit_moves(rows)


def test_a_setting_without_one_image_is_refused() -> None:
    with pytest.raises(StudyError, match=r"every image under every setting; model has 1 of 2"):
        audit_moves(frame().drop(index=0))
