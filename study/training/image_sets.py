"""The images and weights that the runs of a launch read, and the identity that these give a run."""

import hashlib
from pathlib import Path

from study import StudyError
from study.data.crops import Patches
from study.data.images import ImageSet, open_images
from study.grid.identity import Identities
from study.grid.models import External
from study.grid.schema import Run, Source
from study.models import build
from study.models.external import find_weights, placed
from study.objectives import require
from study.training.schedule import sample_numbers


class ImageSets:
    """What the runs of a launch read, each opened once: image sets, and the contents of external weights.

    Args:
        root: folder that relative paths start from.
        cache: folder for decoded images.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache
        self._open: dict[Source, ImageSet] = {}
        self._digests: dict[External, str] = {}
        self._common: dict[tuple[Source, Source], tuple[str, str] | None] = {}
        self._identities = Identities(self.fingerprint)

    def __getitem__(self, source: Source) -> ImageSet:
        if source not in self._open:
            self._open[source] = open_images(source, root=self.root, cache=self.cache)
        return self._open[source]

    def identify(self, run: Run) -> str:
        """The run's id; raises `DataError` where an image set or a weights file cannot be read."""
        return self._identities[run]

    def fingerprint(self, item: Source | External) -> str:
        """Hash of the content of an image set, or of an external network's weights file."""
        if not isinstance(item, External):
            return self[item].fingerprint
        if item not in self._digests:
            with find_weights(item, self.root).open("rb") as file:
                self._digests[item] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[item]

    def check(self, run: Run, processes: int) -> None:
        """Refuses what would fail once it runs.

        Args:
            run: a resolved run.
            processes: how many will share it.

        Raises:
            DataError: a training image is smaller than the crop, or external weights are missing.
            WeightsError: external weights are not what the run needs.
            MetricUnavailable: a distance or a reward of the objective needs weights that cannot be had.
            StudyError: the batch does not divide, or the run trains on a set that it is evaluated on.
        """
        if not run.trains:
            build(placed(run, self.root))
            return
        try:
            next(sample_numbers(run.optimisation, 0, 0, processes))
        except ValueError as error:
            raise StudyError(str(error)) from None
        require(run.objective)
        train = self[run.data.train]
        for name, source in run.evaluation.datasets.items():
            same = self._shared(run.data.train, source)
            if same is not None:
                raise StudyError(
                    f"data.train ({train.name}) holds image '{same[1]}' of evaluation.datasets.{name}, as '{same[0]}': "
                    "what is trained on cannot be tested on"
                )
        Patches.of(run, train)

    def _shared(self, train: Source, test: Source) -> tuple[str, str] | None:
        key = train, test
        if key not in self._common:
            self._common[key] = self[train].shared(self[test])
        return self._common[key]

    def fingerprints(self, run: Run) -> dict[str, str]:
        """Name of all that the run reads -> hash of its content."""
        named: dict[str, Source | External] = {f"evaluation.{n}": s for n, s in run.evaluation.datasets.items()}
        if "data" not in run.ineffective():
            named["data.train"] = run.data.train
        if isinstance(run.model, External):
            named["model.weights"] = run.model
        return {name: self.fingerprint(item) for name, item in named.items()}
