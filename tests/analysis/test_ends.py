from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from study.analysis.comparisons import compare_declared
from study.analysis.ends import CAPTION, draw_ends, ends_caption, panels_shown, read_thumbnails
from study.analysis.figures import NAMED_IMAGES, cell_styles, draw_images
from study.analysis.pictures import save_figure
from study.records.store import RecordError
from tests.analysis.synthetic import GRID, Study, arrange, draw_study, points, write_provenance
from tests.analysis.test_significance import LOW, rename_metric

pytestmark = pytest.mark.usefixtures("style")


def pictures(count: int) -> dict[str, np.ndarray]:
    """A picture of one grey level for each image of `draw_study`."""
    return {f"image_{i:02d}": np.full((6, 9, 3), 2 * i, np.uint8) for i in range(count)}


def drawn(study: Study, thumbnails: dict[str, np.ndarray]) -> Figure:
    results = arrange(study)
    figure = draw_ends(compare_declared(results), cell_styles(results), thumbnails)
    assert figure is not None
    return figure


def ends(figure: Figure) -> list[tuple[list[str], int | None]]:
    """Lines of text above each picture, and its grey level; None where there is no picture."""
    axes = [one for one in figure.axes if not one.axison]
    return [
        (one.get_title().split("\n"), int(np.asarray(one.images[0].get_array()).max()) if one.images else None)
        for one in axes
    ]


def write_thumbnails(study: Study, fingerprint: str, *names: str) -> Path:
    folder = study.runs.parent / "thumbnails" / fingerprint
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (9, 6), (10, 200, 30)).save(folder / f"{name}.jpg")
    return folder


def test_pictures_are_found_by_the_fingerprint_of_the_set(tmp_path):
    study = draw_study(tmp_path)
    write_provenance(study)
    write_thumbnails(study, "abc", "image_00", "a.b")
    results = arrange(study)
    assert read_thumbnails(results, study.runs, "bundled") == {}  # records of an older version name no set
    write_provenance(study, data={"evaluation.bundled": "abc", "evaluation.Set5": "def"})
    found = read_thumbnails(results, study.runs, "bundled")
    assert set(found) == {"image_00", "a.b"}
    assert found["a.b"].shape == (6, 9, 3)
    assert np.abs(found["a.b"].astype(int) - (10, 200, 30)).max() <= 3
    assert read_thumbnails(results, study.runs, "Set5") == {}
    for status in study.statuses.values():
        status["state"] = "failed"
    assert read_thumbnails(results, study.runs, "bundled") == {}


def test_a_broken_picture_is_named(tmp_path):
    study = draw_study(tmp_path)
    write_provenance(study, data={"evaluation.bundled": "abc"})
    (write_thumbnails(study, "abc") / "torn.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(RecordError, match=r"torn\.jpg is not a readable picture"):
        read_thumbnails(arrange(study), study.runs, "bundled")


def test_both_ends_of_every_comparison_are_pictured(tmp_path):
    study = draw_study(tmp_path)
    found = ends(drawn(study, pictures(10)))
    family = compare_declared(arrange(study))
    assert len(found) == 2 * len(family)
    for index, comparison in enumerate(family):
        means = comparison.deltas.values.mean(axis=0)
        for (lines, grey), place in zip(found[2 * index :], (means.argmax(), means.argmin()), strict=False):
            assert lines[1:] == [comparison.deltas.images[place], f"{means[place]:+.3f} dB".replace("-", "−")]
            assert grey == 2 * place
    assert {lines[0] for lines, _ in found} == {"largest gain", "largest loss"}


def test_an_end_is_named_by_its_sign(tmp_path):
    found = ends(drawn(draw_study(tmp_path, effects={"soft, count=16": 2.0}), pictures(10)))
    assert [lines[0] for lines, _ in found[:4]] == ["largest gain", "smallest gain", "smallest loss", "largest loss"]


def test_images_go_up_from_the_largest_loss(tmp_path):
    axes = drawn(draw_study(tmp_path), pictures(10)).axes[0]
    (means,) = [points(line)[0][np.argsort(points(line)[1])] for line in axes.lines if line.get_markersize() == 6]
    assert (np.diff(means) >= 0).all()
    assert len(means) == len(axes.get_yticklabels()) == 10


def test_where_lower_is_better_a_gain_is_below_zero(tmp_path):
    study = draw_study(tmp_path, LOW)
    rename_metric(study, "ssim", "gmsd")
    figure = drawn(study, pictures(10))
    (top, _), (bottom, _) = ends(figure)[:2]
    assert (top[0], top[2][0]) == ("largest gain", "−")
    assert (bottom[0], bottom[2][0]) == ("largest loss", "+")
    axes = figure.axes[0]
    (means,) = [points(line)[0][np.argsort(points(line)[1])] for line in axes.lines if line.get_markersize() == 6]
    assert (np.diff(means) <= 0).all()


def test_many_images_are_counted_not_named(tmp_path):
    figure = drawn(draw_study(tmp_path, images=NAMED_IMAGES + 1), pictures(NAMED_IMAGES + 1))
    panel = figure.axes[0]
    assert len(panel.get_yticklabels()) == 0
    assert panel.get_ylabel() == f"{NAMED_IMAGES + 1} images"


def test_an_image_without_a_picture_is_named_all_the_same(tmp_path):
    study = draw_study(tmp_path, images=2)
    found = ends(drawn(study, {"image_00": np.zeros((4, 4, 3), np.uint8)}))
    assert sorted((lines[1], grey) for lines, grey in found[:2]) == [("image_00", 0), ("image_01", None)]


def test_a_single_image_is_shown_once(tmp_path):
    assert len(ends(drawn(draw_study(tmp_path, images=1), pictures(1)))) == 3


def test_without_pictures_the_differences_alone_are_drawn(tmp_path):
    study = draw_study(tmp_path)
    results = arrange(study)
    family, styles = compare_declared(results), cell_styles(results)
    figure, plain = drawn(study, {}), draw_images(family, styles)
    assert [len(one.lines) for one in figure.axes] == [len(one.lines) for one in plain.axes] == [3] * 3
    assert ends(figure) == []
    assert ends_caption(family, {}) == CAPTION
    assert "both ends" in ends_caption(family, pictures(1))
    study.statuses.clear()
    assert draw_ends(compare_declared(arrange(study)), styles, pictures(10)) is None


def test_texts_do_not_cover_each_other(tmp_path):
    study = draw_study(tmp_path, GRID, images=5)
    study.records.images["image"] = study.records.images["image"] + " of a place with a very long name"
    figure = drawn(study, {f"{name} of a place with a very long name": p for name, p in pictures(5).items()})
    figure.draw_without_rendering()
    titles = [axes.title.get_window_extent() for axes in figure.axes if not axes.axison]
    panels = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    assert not any(title.overlaps(panel) for title in titles for panel in panels if panel)


def test_equal_figures_give_equal_bytes(tmp_path):
    results = arrange(draw_study(tmp_path, images=5))
    family, styles = compare_declared(results)[:1], cell_styles(results)
    figures = [draw_ends(family, styles, pictures(5)) for _ in range(2)]
    one, other = (save_figure(f, tmp_path / n, "ends", "") for f, n in zip(figures, "ab", strict=True) if f)
    for ending, path in one.paths.items():
        assert path.read_bytes() == other.paths[ending].read_bytes()


def test_of_many_comparisons_the_largest_are_drawn(tmp_path):
    study = draw_study(tmp_path)
    family = compare_declared(arrange(study))
    many = [replace(family[0], mean=value) for value in (0.1, -0.9, 0.2, 0.3, -0.4, 0.5, 0.6, 0.05)]
    assert [comparison.mean for comparison in panels_shown(many)] == [-0.9, 0.2, 0.3, -0.4, 0.5, 0.6]
    assert ends_caption(many, {}).endswith("6 of 8 comparisons, those with the largest mean differences.")
    assert panels_shown(family) == family
