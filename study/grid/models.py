"""Declared models: what a run's `model` may be. The networks themselves are in `study.models`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from study.grid.fields import Declared, Ints, Neutral, NoEffect

Guidance = Annotated[
    Literal["bias", "similarity", "feature", "loss"],
    Neutral("bias"),
    Field(
        description="a bias on the logits, the same on the cosines before the temperature divides them, channels "
        "beside the tokens' in the similarity, or a routing loss"
    ),
]


class NoPrior(Declared):
    """No guidance of the assignment."""

    kind: Literal["none"] = "none"


class FrequencyPrior(Declared):
    """Log energy in octave bands at the token's place, which guides the assignment (ours).

    `shuffled` is the placebo: the same descriptor, permuted over the tokens of each image.
    """

    kind: Literal["frequency", "shuffled"]
    transform: Literal["dct", "wavelet", "laplacian"] = "dct"
    bands: Annotated[int, Field(ge=2, le=6)] = 4
    guidance: Guidance = "bias"


class ControlPrior(Declared):
    """A descriptor of the same size without frequency content: fresh Gaussian `noise`, or local `variance`."""

    kind: Literal["noise", "variance"]
    bands: Annotated[int, Field(ge=2, le=6)] = 4
    guidance: Guidance = "bias"


class Prototypes(Declared):
    """The token centres of each block; lists are cycled over the blocks.

    Attributes:
        count: prototypes per block.
        update: `ema_kmeans` as published; `frozen` keeps the first batch's; `learned` is a parameter;
            `per_image` runs the k-means steps on the image itself, at test too.
        iterations: k-means steps per forward.
        ema_decay: share of the old buffer kept at each training forward, of which a step with `accumulate` has several.
        scope: `global` sums clusters over all processes; `process` as published.
    """

    count: Ints = (16, 32, 64, 128)
    update: Literal["ema_kmeans", "frozen", "learned", "per_image"] = "ema_kmeans"
    iterations: PositiveInt = 5
    ema_decay: Annotated[float, Field(ge=0, le=1)] = 0.999
    scope: Literal["global", "process"] = "global"

    def ineffective(self) -> set[str]:
        return {
            "ema_kmeans": set(),
            "frozen": {"ema_decay", "iterations"},
            "learned": {"ema_decay", "iterations", "scope"},
            "per_image": {"ema_decay", "scope"},
        }[self.update]


class Hard(Declared):
    """One prototype per token, attention within and between groups (CATANet; its switches are methods' own arms)."""

    kind: Literal["hard"] = "hard"
    group_sizes: Ints = (256, 128, 64, 32)
    attend_next: bool = True
    fusion: Literal["add", "concat", "iasa", "irca"] = "add"
    padding: Literal["mirrored", "masked"] = "mirrored"
    tie_order: Literal["stable", "similarity"] = "stable"

    def ineffective(self) -> set[str]:
        return {"group_sizes", "attend_next", "padding", "tie_order"} if self.fusion == "irca" else set()


class Soft(Declared):
    """Each token spread over prototypes, with token-to-prototype-to-token flow instead of groups (ours).

    Attributes:
        support: which weights may be non-zero: all, the `top_k` largest, or sparsemax's own choice.
        top_k: size of the support; given exactly when `support` is `topk`.
        scatter: prototypes return to tokens through the same weights, or through attention.
        prior: what guides the assignment.
    """

    kind: Literal["soft"] = "soft"
    support: Literal["dense", "topk", "sparsemax"] = "dense"
    top_k: PositiveInt | None = None
    scatter: Literal["shared", "attention"] = "shared"
    prior: Annotated[NoPrior | FrequencyPrior | ControlPrior, Field(discriminator="kind")] = NoPrior()

    @model_validator(mode="after")
    def _top_k_belongs_to_topk(self) -> Self:
        if (self.support == "topk") != (self.top_k is not None):
            raise ValueError(
                f"top_k goes with support: topk, and only there (support {self.support}, top_k {self.top_k})"
            )
        return self


class Superpixel(Declared):
    """Each token spread over the nine super tokens of its neighbourhood, which attend one another (Huang et al., 2023).

    Attributes:
        sizes: sides of the super tokens' grid cells, px.
    """

    kind: Literal["superpixel"] = "superpixel"
    sizes: Ints = (12, 16, 20, 24)


class SoftMoE(Declared):
    """Slots that are weighted means of all tokens, each through its expert, and mixed back (Puigcerver et al., 2024).

    Attributes:
        slots: slots per block.
        experts: networks that share the slots of a block evenly.
    """

    kind: Literal["soft_moe"] = "soft_moe"
    slots: Ints = (16, 32, 64, 128)
    experts: PositiveInt = 4

    @model_validator(mode="after")
    def _experts_share_evenly(self) -> Self:
        if any(count % self.experts for count in self.slots):
            raise ValueError(f"slots {list(self.slots)}: each must be a multiple of experts {self.experts}")
        return self


class Global(Declared):
    """Every token attends every other: an upper anchor, for small inputs."""

    LARGEST_PX: ClassVar[int] = 128
    kind: Literal["global"] = "global"


class NoAssignment(Declared):
    """No token aggregation at all: local attention only."""

    kind: Literal["none"] = "none"


class CATANet(Declared):
    """CATANet (Liu et al., CVPR 2025) and the networks that differ from it in their token aggregation.

    Defaults are the published size. Lists are cycled over the blocks, so `blocks` alone scales the depth.
    """

    trained: ClassVar[bool] = True
    kind: Literal["catanet"] = "catanet"
    width: PositiveInt = 40
    blocks: PositiveInt = 8
    qk_width: PositiveInt = 36
    mlp_width: PositiveInt = 96
    heads: PositiveInt = 4
    windows: Annotated[Ints, Field(description="sides of the local attention windows, px")] = (16, 20, 24, 28)
    blend: Literal["published", "averaged"] = "published"
    prototypes: Prototypes = Prototypes()
    assignment: Annotated[Hard | Soft | Superpixel | SoftMoE | Global | NoAssignment, Field(discriminator="kind")] = (
        Hard()
    )

    def ineffective(self) -> set[str]:
        return set() if isinstance(self.assignment, Hard | Soft) else {"prototypes"}

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        for name, value in (("width", self.width), ("qk_width", self.qk_width)):
            if value % self.heads:
                raise ValueError(f"{name} {value} is not a multiple of heads {self.heads}")
        if min(self.windows) < 4:
            raise ValueError(
                f"windows {list(self.windows)}: a window needs a side of at least 4 px (its stride is side - 2)"
            )
        if (
            isinstance(self.assignment, Hard)
            and self.assignment.fusion == "iasa"
            and self.prototypes.update == "learned"
        ):
            raise ValueError("assignment.fusion: iasa trains no prototype; prototypes.update must not be learned")
        if isinstance(self.assignment, Soft) and (self.assignment.top_k or 0) > min(self.prototypes.count):
            raise ValueError(
                f"top_k {self.assignment.top_k} exceeds the smallest prototypes.count, {min(self.prototypes.count)}"
            )
        return self


class SPIN(Declared):
    """SPIN (Zhang et al., ICCV 2023); defaults are the published size. Lists are cycled over the blocks."""

    trained: ClassVar[bool] = True
    kind: Literal["spin"] = "spin"
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 40
    blocks: PositiveInt = 8
    qk_width: PositiveInt = 24
    mlp_width: PositiveInt = 72
    superpixels: Annotated[Ints, Field(description="sides of superpixels and of local windows, px")] = (12, 16, 20, 24)

    @model_validator(mode="after")
    def _windows_advance(self) -> Self:
        if min(self.superpixels) < 4:
            raise ValueError(
                f"superpixels {list(self.superpixels)}: a window needs a side of at least 4 px (its stride is side - 2)"
            )
        return self


class IMDN(Declared):
    """IMDN (Hui et al., ACM MM 2019); defaults are the published size."""

    trained: ClassVar[bool] = True
    kind: Literal["imdn"] = "imdn"
    width: Annotated[int, Field(ge=8, multiple_of=4)] = 64
    blocks: Annotated[int, Field(ge=1)] = 6


class CFSR(Declared):
    """CFSR (Wu et al., 2024); defaults are the published size."""

    trained: ClassVar[bool] = True
    kind: Literal["cfsr"] = "cfsr"
    width: PositiveInt = 48
    layers: PositiveInt = 2
    blocks: Annotated[PositiveInt, Field(description="blocks per layer")] = 6
    mlp_width: PositiveInt = 96


class UNet(Declared):
    """Pixel-space U-Net with window attention that maps a noisy image and a time to a clean one (CTMSR).

    Defaults are the published size.

    Attributes:
        width: channels at the top level; the embedding of the time has four times as many.
        multipliers: of the width at each level, the finest first.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        window: side of the attention windows, px.
        attention_width: channels inside the attention blocks.
        heads: of the attention.
        mlp_ratio: hidden over attention width.
        dropout: inside the residual blocks, in training.
        noise_level: standard deviation of the path's noise at its LR end, images being in [-1, 1].
        base: what the network's output is added to: nothing, as published, or the enlarged LR image (ours).
        inference_steps: times that an inference denoises; training does not see it.
    """

    trained: ClassVar[bool] = True
    kind: Literal["unet"] = "unet"
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 192
    multipliers: Ints = (1, 2, 2, 2)
    blocks: PositiveInt = 4
    window: PositiveInt = 8
    attention_width: Annotated[int, Field(ge=8, multiple_of=8)] = 192
    heads: PositiveInt = 6
    mlp_ratio: PositiveInt = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.13
    noise_level: PositiveFloat = 1.0
    base: Literal["none", "bicubic"] = "none"
    inference_steps: PositiveInt = 1

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.attention_width % self.heads:
            raise ValueError(f"attention_width {self.attention_width} is not a multiple of heads {self.heads}")
        return self


class Bicubic(Declared):
    """MATLAB-compatible bicubic enlargement: a run like any other, with nothing to train."""

    trained: ClassVar[bool] = False
    kind: Literal["bicubic"] = "bicubic"


class External(Declared):
    """A trained network from a weights file, evaluated as it is.

    Attributes:
        weights: a weights file; relative paths start from the data root. Its content counts, not its place.
        network: what the file is of, such as `{kind: imdn}`; when absent, any architecture that spandrel knows.
    """

    trained: ClassVar[bool] = False
    kind: Literal["external"] = "external"
    weights: Annotated[str, NoEffect()]
    network: Annotated[CATANet | SPIN | IMDN | CFSR | UNet, Field(discriminator="kind")] | None = None


Model = Annotated[CATANet | SPIN | IMDN | CFSR | UNet | External | Bicubic, Field(discriminator="kind")]
