import pytest
import torch

from study.models import attention, depthwise, prototypes, support


@pytest.fixture(params=["as on one CPU thread", "as on a GPU"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways to compute that one thread of a CPU takes, then those of a GPU, with its padding of narrow heads."""
    on_gpu = request.param == "as on a GPU"
    monkeypatch.setattr(attention, "_in_blocks", lambda _: not on_gpu)
    monkeypatch.setattr(depthwise, "_by_columns", lambda _: not on_gpu and torch.is_grad_enabled())
    if on_gpu:
        monkeypatch.setitem(attention._ALIGNMENT, "cpu", attention._ALIGNMENT["cuda"])
        monkeypatch.setattr(prototypes, "summed_in_turn", prototypes.summed_by_product)
        monkeypatch.setattr(support, "threshold_by_search", support.threshold_by_sorting)
