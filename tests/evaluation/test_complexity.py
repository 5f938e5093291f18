import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from study.evaluation.complexity import multiply_adds, parameters
from study.grid.models import CFSR, IMDN, Bicubic, CATANet, Hard, NoAssignment, Prototypes, Soft
from study.grid.schema import Run
from study.models import build


@pytest.mark.parametrize(("scale", "published"), [(2, 477_435), (3, 549_635), (4, 535_195)])
def test_parameters_are_those_of_the_paper(scale: int, published: int) -> None:
    with torch.device("meta"):
        assert parameters(build(Run.model_validate({"scale": scale}))) == published


def test_catanet_is_counted_as_its_authors_do() -> None:
    # 46.8 G is printed; what they leave out beside the attention products they do not say
    assert multiply_adds(Run(scale=4), (256, 256)) == pytest.approx(46.8e9, rel=0.01)


def test_imdn_agrees_with_a_count_by_hand() -> None:
    run = Run(scale=4, model=IMDN())
    per_pixel = 3 * 64 * 9 + 6 * (64 * 64 * 9 + 2 * 48 * 64 * 9 + 48 * 16 * 9 + 64 * 64) + 384 * 64 + 64 * 64 * 9
    per_pixel += 64 * 48 * 9
    attention = 6 * 2 * 64 * 4  # on one place of the whole image
    assert multiply_adds(run, (32, 48)) == per_pixel * 32 * 48 + attention
    assert multiply_adds(Run(model=Bicubic())) == 0
    assert multiply_adds(Run(model=CFSR())) > 0


@pytest.mark.parametrize("assignment", [Hard(), Soft(), Soft(scatter="attention"), NoAssignment()], ids=str)
def test_the_count_by_layers_agrees_with_what_runs_where_nothing_is_padded(
    assignment: Hard | Soft | NoAssignment,
) -> None:
    # heads of 8 channels need no padding, sides and groups divide, and at scale 1 there is no upsampler
    sizes = CATANet(width=32, blocks=1, qk_width=32, heads=4, windows=(16,), prototypes=Prototypes(count=(16,)))
    run = Run(scale=1, model=sizes.model_copy(update={"assignment": assignment}))
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        build(run).eval()(torch.empty(1, 3, 16, 16))
    aten = torch.ops.aten
    counts = counter.get_flop_counts()["Global"]
    ran = sum(count for operation, count in counts.items() if operation in (aten.convolution, aten.mm, aten.addmm)) // 2
    merged = 32**3 if assignment.kind == "hard" else 0  # two weights multiplied with each other, once
    assert multiply_adds(run, (16, 16)) == pytest.approx(ran - merged, rel=0.05)
