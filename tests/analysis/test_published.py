from pathlib import Path

import pytest

from study.analysis.published import (
    COLUMNS,
    MARKS,
    PublishedError,
    contradictions,
    load_published,
    place,
    select,
    select_known,
)

ROW = "CATANet,Table 2,CATANet,4,,Set5,psnr,32.58,float_y,,a source,transcribed,"


def write(folder: Path, *rows: str, head: str = ",".join(COLUMNS)) -> Path:
    (folder / "paper.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def test_committed_numbers_are_read_and_marked():
    numbers = load_published()
    assert len(numbers) > 1000
    assert {one.confidence for one in numbers} == set(MARKS)
    (catanet,) = select(
        numbers, method="catanet", paper="CATANet", table="Table 2", scale=4, dataset="Set5", metric="psnr"
    )
    assert (catanet.value, catanet.digits, catanet.mark, catanet.protocol) == ("32.58", 2, "(t)", "float_y")


def test_the_known_misprint_is_flagged_and_nothing_else():
    flagged = contradictions(load_published())
    assert [place(one) for one in flagged] == ["CATANet, Table 4: Clustered Attention x2 Set5 psnr"]


def test_a_coarser_scale_is_not_better(tmp_path):
    rows = [ROW, ROW.replace(",4,,", ",2,,").replace("32.58", "32.10")]
    flagged = contradictions(load_published(write(tmp_path, *rows)))
    assert [(one.scale, why) for one, why in flagged.items()] == [(4, "x4 is not below x2 (32.10 dB)")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW.replace("32.58", "3.258"), "line 2, value: psnr 3.258 lies outside 10 to 60"),
        (ROW.replace("32.58", "n/a"), "line 2, value: 'n/a'"),
        (ROW.replace("transcribed", "sure"), "line 2, confidence: 'sure'"),
        (ROW.replace("psnr", "pnsr"), "line 2, metric: 'pnsr' is not known; did you mean 'psnr'"),
        (ROW.replace("float_y", ""), "line 2, protocol: ''"),
        (ROW.replace(",4,,", ",five,,"), "line 2, scale: 'five'"),
        (ROW + ",more", "line 2: 14 values for 13 columns"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, said):
    with pytest.raises(PublishedError) as error:
        load_published(write(tmp_path, row))
    assert said in str(error.value)


def test_a_number_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(PublishedError, match="line 3: CATANet psnr stands in line 2 already"):
        load_published(write(tmp_path, ROW, ROW))


def test_other_columns_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(PublishedError, match="holds no CSV"):
        load_published(tmp_path)
    with pytest.raises(PublishedError, match="line 1: the columns must be paper, table"):
        load_published(write(tmp_path, ROW, head="a,b"))


def test_an_unknown_filter_names_the_nearest():
    with pytest.raises(PublishedError, match="did you mean 'CATANet'"):
        select_known(load_published(), method="CATNet")
