"""The typed form of a grid: a question, the runs that answer it, and the analysis declared beforehand."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from study.grid.fields import Declared, Fraction, Names, Neutral, NoEffect, Sequence
from study.grid.models import Bicubic, CATANet, Global, Model, UNet
from study.grid.objectives import L1, Adaptive, Consistency, Objective

SCHEMA_VERSION = 1

Protocol = Literal["uint8_y", "matlab_y", "clamped_y", "float_y", "rgb"]
Metric = Literal[
    "psnr",
    "ssim",
    "ssim_pyiqa",
    "fsim",
    "vif",
    "gmsd",
    "lpips",
    "clipiqa",
    "musiq",
    "maniqa",
    "niqe",
    "swd",
    "spectral_slope",
    "high_band",
    "diversity",
]
# Metrics with a better end, which alone can decide a comparison.
Primary = Literal[
    "psnr", "ssim", "ssim_pyiqa", "fsim", "vif", "gmsd", "lpips", "clipiqa", "musiq", "maniqa", "niqe", "swd"
]
Scale = Literal[1, 2, 3, 4]


class Bundled(Declared):
    """The photographs that ship inside scikit-image, split into disjoint train and test sets."""

    kind: Literal["bundled"] = "bundled"
    split: Annotated[Literal["train", "test"], NoEffect()]


class Folder(Declared):
    """HR images of a folder, or of several as one set; LR images are made by the MATLAB-compatible bicubic resize."""

    kind: Literal["folder"] = "folder"
    path: Annotated[str | Names, NoEffect(), Field(description="a folder, or a list of folders that are read as one")]


class Pairs(Declared):
    """A folder of HR and a folder of LR images, matched by name."""

    kind: Literal["pairs"] = "pairs"
    hr: Annotated[str, NoEffect()]
    lr: Annotated[str, NoEffect()]


class Hub(Declared):
    """An image column of a Hugging Face dataset: an id, or a folder written by `save_to_disk`."""

    kind: Literal["hub"] = "hub"
    name: Annotated[str, NoEffect()]
    split: Annotated[str, NoEffect()] = "train"
    column: Annotated[str, NoEffect()] = "image"


class Degraded(Declared):
    """HR images with LR images made by the degradation of `RealESRGAN`, that of image n by draw (seed, 2^62 + n)."""

    kind: Literal["degraded"] = "degraded"
    of: Annotated[Bundled | Folder | Hub, Field(discriminator="kind")]
    seed: NonNegativeInt = 0


Source = Annotated[Bundled | Folder | Pairs | Hub | Degraded, Field(discriminator="kind")]


class BicubicReduction(Declared):
    """LR images are the image set's own: made by the MATLAB-compatible bicubic resize, or given as pairs."""

    kind: Literal["bicubic"] = "bicubic"


class RealESRGAN(Declared):
    """LR crops made from the HR crop by two stages of blur, resize, noise and JPEG (Wang et al., ICCVW 2021).

    What is drawn for sample n of run seed s depends on (s, n) alone. `version` is raised when equal draws give other
    pixels.
    """

    kind: Literal["real_esrgan"] = "real_esrgan"
    version: Literal[1] = 1


Degradation = Annotated[BicubicReduction | RealESRGAN, Field(discriminator="kind")]


class Data(Declared):
    """What a network trains on; paths are relative to the data root (`--data-root`, STUDY_DATA, or datasets/)."""

    train: Source = Folder(path="DIV2K/DIV2K_train_HR")
    lr_patch_px: Annotated[int, Field(ge=8)] = 64
    smaller: Annotated[
        Literal["refuse", "leave_out"], Neutral("refuse"), Field(description="images that hold no crop of that side")
    ] = "refuse"
    augment: Annotated[bool, Field(description="random flips and quarter turns")] = True
    degradation: Annotated[Degradation, Neutral(BicubicReduction())] = BicubicReduction()


class Adam(Declared):
    """Adam (Kingma & Ba)."""

    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = 2e-4
    betas: Annotated[tuple[float, float], Sequence] = (0.9, 0.99)


class AdamW(Declared):
    """Adam with decoupled weight decay (Loshchilov & Hutter)."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 2e-4
    betas: Annotated[tuple[float, float], Sequence] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class MultiStep(Declared):
    """The learning rate is multiplied by `gamma` at each milestone, given as a fraction of all steps."""

    kind: Literal["multistep"] = "multistep"
    milestones: Annotated[tuple[Fraction, ...], Sequence] = (0.5, 0.8, 0.9, 0.95)
    gamma: Fraction = 0.5


class Cosine(Declared):
    """The learning rate falls along half a cosine to `final` times its start."""

    kind: Literal["cosine"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0


class Constant(Declared):
    """The learning rate stays."""

    kind: Literal["constant"] = "constant"


class Optimisation(Declared):
    """How a run is trained; the clock is optimiser steps at a global batch."""

    steps: Annotated[NonNegativeInt, Field(description="0: the network of `start` is evaluated as it is")] = 250_000
    batch: Annotated[PositiveInt, Field(description="global batch: samples per optimiser step over all processes")] = 64
    accumulate: Annotated[PositiveInt, Field(description="micro-batches per optimiser step")] = 1
    optimiser: Annotated[Adam | AdamW, Field(discriminator="kind")] = Adam()
    schedule: Annotated[MultiStep | Cosine | Constant, Field(discriminator="kind")] = MultiStep()
    warmup_steps: NonNegativeInt = 0
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = "fp32"
    compile: bool = False
    ema_decay: Annotated[Fraction | None, Field(description="weight average that is evaluated; none when null")] = None
    checkpoint_every_s: Annotated[float, NoEffect(), Field(ge=0, description="0: at every row of the curve")] = 300.0
    log_every: Annotated[PositiveInt, Field(description="steps between rows of the training curve")] = 10

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        return self


class Evaluation(Declared):
    """What a trained network is measured on, and how.

    Attributes:
        datasets: name -> images.
        tile_lr_px: inputs with a longer side are tiled, in LR pixels, with `overlap_lr_px` on every seam.
        validations: how often PSNR is measured during training, on the centre of each image of the first dataset.
        samples: images per dataset of which a crop is kept for the figures.
        cost_lr_px: side of the input that time and memory of an inference are measured at, in LR pixels.
    """

    datasets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=64)], Source] = Field(
        default={name: Folder(path=f"{name}/HR") for name in ("Set5", "Set14", "B100", "Urban100", "Manga109")},
        min_length=1,
    )
    protocols: Annotated[tuple[Protocol, ...], Sequence, Field(min_length=1)] = (
        "uint8_y",
        "matlab_y",
        "clamped_y",
        "float_y",
        "rgb",
    )
    metrics: Annotated[tuple[Metric, ...], Sequence, Field(min_length=1)] = ("psnr", "ssim")
    self_ensemble: bool = False
    tile_lr_px: Annotated[int, Field(ge=64)] = 512
    overlap_lr_px: Annotated[int, Field(ge=0)] = 32
    validations: NonNegativeInt = 10
    samples: NonNegativeInt = 2
    cost_lr_px: Annotated[int, NoEffect(), Field(ge=8)] = 256

    @model_validator(mode="after")
    def _tiles_advance(self) -> Self:
        if 2 * self.overlap_lr_px >= self.tile_lr_px:
            raise ValueError(
                f"overlap_lr_px {self.overlap_lr_px} must be less than half of tile_lr_px {self.tile_lr_px}"
            )
        return self


class Run(Declared):
    """One network, trained and evaluated once.

    Attributes:
        start: the run whose evaluated weights this one begins from: in a grid the name of a cell (with this run's seed
            and its labels on every axis), or the id of a finished run in the results folder.
    """

    scale: Scale = 4
    model: Model = CATANet()
    objective: Objective = L1()
    data: Data = Data()
    optimisation: Optimisation = Optimisation()
    evaluation: Evaluation = Evaluation()
    seed: Annotated[NonNegativeInt, Field(description="the first; `seeds` counts from it")] = 0
    start: "Annotated[Run | str | None, Neutral(None)]" = None

    def ineffective(self) -> set[str]:
        if not self.model.trained:
            return {"objective", "data", "optimisation", "seed"}
        return set() if self.optimisation.steps else {"objective", "data", "optimisation"}

    @property
    def trains(self) -> bool:
        """Whether optimiser steps are taken."""
        return self.model.trained and self.optimisation.steps > 0

    @model_validator(mode="after")
    def _start_is_needed_and_of_use(self) -> Self:
        if self.start is not None and not self.model.trained:
            raise ValueError(f"start: a {self.model.kind} network is not trained, so it starts from no run")
        if self.model.trained and not self.optimisation.steps and self.start is None:
            raise ValueError("optimisation.steps 0 evaluates the network of another run; name it by start")
        return self

    @model_validator(mode="after")
    def _objective_and_model_go_together(self) -> Self:
        if self.trains and isinstance(self.objective, Consistency) != isinstance(self.model, UNet):
            raise ValueError(
                f"objective {self.objective.kind} does not train model {self.model.kind}: consistency, trajectory "
                "and adaptive train a unet (a network of a noisy image and a time), and nothing else does"
            )
        return self

    @model_validator(mode="after")
    def _two_optimisers_share_no_loss_scale(self) -> Self:
        if (
            isinstance(self.objective, Adaptive)
            and self.objective.separate_fake
            and self.optimisation.precision == "fp16"
        ):
            raise ValueError(
                "objective.separate_fake: true has an optimiser of its own, and fp16's loss scale follows one; "
                "take optimisation.precision bf16 or fp32"
            )
        return self

    @model_validator(mode="after")
    def _scale_is_known(self) -> Self:
        if self.scale == 1 and isinstance(self.model, Bicubic):
            raise ValueError("scale 1 (restoration) needs a trained model: bicubic enlargement would do nothing")
        return self

    @model_validator(mode="after")
    def _global_attention_gets_small_inputs(self) -> Self:
        if isinstance(self.model, CATANet) and isinstance(self.model.assignment, Global):
            sides = {"evaluation.tile_lr_px": self.evaluation.tile_lr_px, "data.lr_patch_px": self.data.lr_patch_px}
            for name, side in sides.items():
                if side > Global.LARGEST_PX:
                    raise ValueError(
                        f"model.assignment.kind: global takes inputs of at most {Global.LARGEST_PX} px a side, "
                        f"and {name} is {side}"
                    )
        return self


class Analysis(Declared):
    """What will be claimed, declared before anything runs.

    Attributes:
        baseline: the cell that the others are compared with.
        comparisons: pairs (cell, reference); by default every other trained cell against the baseline.
        claim: `same_images` (retraining, on these images), `new_images` (retraining, and new images), or
            `these_weights` (these trained weights, on new images).
        dataset: primary dataset; the first of `evaluation.datasets` when absent.
        metric: primary metric; `protocol` is `rgb` for all but psnr, ssim and ssim_pyiqa.
        margin_db: differences inside it count as equivalent; where the metric is not in dB there is no margin.
        curve: dotted path of the axis that a group-count curve is drawn over.
    """

    baseline: str
    comparisons: Annotated[tuple[Annotated[tuple[str, str], Sequence], ...], Sequence] | None = None
    claim: Literal["same_images", "new_images", "these_weights"] = "same_images"
    dataset: str | None = None
    protocol: Protocol = "uint8_y"
    metric: Primary = "psnr"
    alpha: Fraction = 0.05
    correction: Literal["holm", "none"] = "holm"
    margin_db: PositiveFloat = 0.02
    power: Fraction = 0.8
    curve: str | None = None

    @model_validator(mode="after")
    def _metric_has_the_protocol(self) -> Self:
        if self.metric not in ("psnr", "ssim", "ssim_pyiqa") and self.protocol != "rgb":
            raise ValueError(f"metric {self.metric} is computed on RGB images: it goes with protocol: rgb")
        return self


class Grid(Declared):
    """A question as a product of axes and named variants over a base run, with references beside it.

    A reference (bicubic, a network to beat) is one cell of its own, to which the axes do not apply.
    Keys inside `base`, `variants` and `references` may be dotted paths (`model.assignment.kind`). A mapping
    whose `kind` differs from the one it overlays replaces it; any other is merged into it; lists and
    `evaluation.datasets` are replaced whole.
    """

    question: str
    base: Run = Run()
    variants: dict[str, dict[str, Any]] = {}
    axes: dict[str, list[Any] | dict[str, Any]] = {}
    references: dict[str, dict[str, Any]] = {}
    exclude: list[dict[str, Any]] = []
    seeds: Annotated[PositiveInt | list[NonNegativeInt], Field(description="a count, or the seeds themselves")] = 5
    analysis: Analysis

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if isinstance(self.seeds, list) and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError(f"seeds {self.seeds}: needs at least one, and none twice")
        return self


class Budget(Declared):
    """What a scale of computing lays over any grid.

    Attributes:
        models: by kind, settings of the model, below what a variant says.
        assignments: by kind, settings of CATANet's assignment, below what a variant says.
        objectives: by kind, settings of the run, below what a variant says.
        started: settings of a run that starts from another, above what a variant says.
    """

    RUN_KEYS: ClassVar[tuple[str, ...]] = ("objective", "data", "optimisation", "evaluation")
    description: str
    objective: dict[str, Any] = {}
    data: dict[str, Any] = {}
    optimisation: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    models: dict[str, dict[str, Any]] = {}
    assignments: dict[str, dict[str, Any]] = {}
    objectives: dict[str, dict[str, Any]] = {}
    started: dict[str, Any] = {}
    seeds: PositiveInt | list[NonNegativeInt] = 1
    analysis: dict[str, Any] = {}


def json_schema() -> dict[str, Any]:
    """JSON Schema of a grid file, for editors; dotted keys are allowed where they are read."""
    schema = Grid.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "a grid file that this one is laid over"}
    schema["$defs"]["Run"]["patternProperties"] = {r"\.": {}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
