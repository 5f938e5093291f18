"""Trained networks of other architectures, rebuilt by spandrel from nothing but their weights file."""

import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from study import StudyError
from study.data.decoding import DataError
from study.data.sources import expand_home
from study.grid.models import External as ExternalConfig
from study.grid.schema import Run
from study.models.weights import WeightsError, read_state

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor


class External(nn.Module):
    """A trained network for RGB super-resolution, of any architecture that spandrel knows, evaluated as it is (ours).

    spandrel tells the architecture and its sizes from the names and shapes in the state dict, which is read as any
    other weights file: no code in it is run. The weights are loaded on the CPU, whatever torch's default device.
    All that the file holds counts as parameters: branches that serve training alone, too (SPAN is saved with them).

    Raises:
        StudyError: spandrel is not installed.
        WeightsError: the file cannot be read, is of no architecture that spandrel knows, of another scale, or of a
            network that is not for RGB super-resolution.
    """

    def __init__(self, config: ExternalConfig, scale: int) -> None:
        super().__init__()
        self.config = config
        self.scale = scale
        known = _recognise(Path(config.weights))
        _refuse_unfit(known, config.weights, scale)
        self.network = known.model.requires_grad_(False).eval()
        _register_constants(self.network)
        self._call = known._call_fn  # calling `known` itself clamps, which the protocol float_y must not see
        self._size = known.size_requirements

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Enlarges `x` (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), not clamped; `keys` is not used.

        Where the architecture needs a larger or divisible input, `x` is mirrored at the bottom and right, and the
        output cut.
        """
        height, width = x.shape[-2:]
        right, bottom = self._size.get_padding(width, height)
        if right or bottom:
            rows, columns = _mirrored(height, bottom, x.device), _mirrored(width, right, x.device)
            x = x[..., rows, :][..., columns]
        return self._call(self.network, x)[..., : height * self.scale, : width * self.scale]


def find_weights(config: ExternalConfig, root: Path) -> Path:
    """The weights file; a relative path starts from `root`, the data root.

    Raises:
        DataError: there is no such file.
    """
    given = expand_home(config.weights)
    path = root / given
    if not path.is_file():
        looked = f"'{given}' is looked up in the data root {root.absolute()}"
        which = "which --data-root or the environment variable STUDY_DATA sets"
        raise DataError(f"no file {path}" + ("" if given.is_absolute() else f": {looked}, {which}"))
    return path


def placed(run: Run, root: Path) -> Run:
    """The run as `build` takes it, with the whole path of an external network's weights; any other as it is.

    Raises:
        DataError: there is no such file.
    """
    if not isinstance(run.model, ExternalConfig):
        return run
    path = str(find_weights(run.model, root))
    return run.model_copy(update={"model": run.model.model_copy(update={"weights": path})})


def _recognise(path: Path) -> "ImageModelDescriptor":
    with warnings.catch_warnings(), torch.device("cpu"):
        warnings.simplefilter("ignore")  # of the architectures' own code
        state = read_state(path)
        try:
            import spandrel
        except ModuleNotFoundError as error:
            raise StudyError("model external needs spandrel: pip install 'study[baselines]'") from error
        try:
            known = spandrel.ModelLoader().load_from_state_dict(state)
        except spandrel.UnsupportedModelError as error:
            names = ", ".join(sorted(entry.architecture.name for entry in spandrel.MAIN_REGISTRY))
            raise WeightsError(
                f"{path} is of no architecture that spandrel {spandrel.__version__} knows ({names}); "
                "a network that has a kind of its own is named beside it: network: {kind: imdn}"
            ) from error
        except Exception as error:  # its architectures raise whatever their code comes upon
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
            raise WeightsError(f"{path} resembles an architecture of spandrel but does not fit it: {reason}") from error
    if not isinstance(known, spandrel.ImageModelDescriptor):
        raise WeightsError(f"{path} holds {known.architecture.name}, which takes a mask; external takes images alone")
    return known


def _refuse_unfit(known: "ImageModelDescriptor", path: str, scale: int) -> None:
    name, channels = known.architecture.name, (known.input_channels, known.output_channels)
    if known.purpose != "SR":
        raise WeightsError(f"{path} holds {name} for {known.purpose}; external takes super-resolution (SR) alone")
    if channels != (3, 3):
        raise WeightsError(
            f"{path} holds {name} from {channels[0]} to {channels[1]} channels; external takes RGB to RGB, 3 to 3"
        )
    if known.scale != scale:
        raise WeightsError(f"{path} holds {name} for scale {known.scale}, and the run's scale is {scale}")


def _register_constants(network: nn.Module) -> None:
    """Makes buffers of tensors that modules keep as plain attributes, so that they go where the network goes."""
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                delattr(module, name)
                module.register_buffer(name, value, persistent=False)


def _mirrored(side: int, padding: int, device: torch.device) -> Tensor:
    """Indices of a side continued by its mirror image, at the other end too where the padding is longer."""
    place = torch.arange(side + padding, device=device) % max(2 * side - 2, 1)
    return torch.minimum(place, 2 * side - 2 - place).clamp(min=0)
