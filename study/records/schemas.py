"""Tables that a run writes, with units in the field metadata."""

import pyarrow as pa


def _field(name: str, type_: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return pa.field(name, type_, nullable=False, metadata={"meaning": meaning, "unit": unit})


# The unit of a value depends on its row: metrics and scalars carry it in their name's entry here. A level is 1/255 of
# the image range.
METRIC_UNITS = {
    "psnr": "dB",
    "ssim": "1",
    "ssim_pyiqa": "1",
    "fsim": "1",
    "vif": "1",
    "gmsd": "1",
    "lpips": "1",
    "clipiqa": "1",
    "musiq": "1",
    "maniqa": "1",
    "niqe": "1",
    "swd": "levels",
    "spectral_slope": "1",
    "high_band": "dB",
    "diversity": "levels",
}

IMAGES = pa.schema(
    [
        _field("dataset", pa.string(), "name under evaluation.datasets"),
        _field("image", pa.string(), "file name without its ending"),
        _field("protocol", pa.string(), "preprocessing before the metric"),
        _field("metric", pa.string(), "what was computed"),
        _field("value", pa.float64(), "the metric of this one image", "see METRIC_UNITS"),
    ]
)

SCALARS = pa.schema(
    [
        _field("step", pa.int64(), "optimiser steps done", "steps"),
        _field("name", pa.string(), "loss, learning_rate, gradient_norm, validation_psnr_y_db, …"),
        _field("value", pa.float64(), "its value at that step", "in the name where it has one"),
    ]
)

COSTS = pa.schema(
    [
        _field("name", pa.string(), "training, parameters, multiply_adds_720p, latency_median, …"),
        _field("value", pa.float64(), "its value"),
        _field("unit", pa.string(), "unit of the value"),
    ]
)

BENCH = pa.schema(
    [
        _field("model", pa.string(), "network and assignment"),
        _field("phase", pa.string(), "training or inference"),
        _field("variant", pa.string(), "which optimisation is off, or what is otherwise"),
        _field("repeat", pa.int64(), "round of the interleaved measurement"),
        _field("seconds", pa.float64(), "one step, or one inference", "s"),
        _field("operations", pa.float64(), "of the plain formulation", "FLOP"),
        _field("matrix_rate", pa.float64(), "of a matrix product just before and after", "FLOP/s"),
        _field("memory", pa.float64(), "most that was held on the GPU beyond what was before; NaN on a CPU", "B"),
    ]
)

NOISE_FLOOR = pa.schema(
    [
        _field("seed", pa.int64(), "of one network's training"),
        _field("dataset", pa.string(), "name under evaluation.datasets"),
        _field("image", pa.string(), "file name without its ending"),
        _field("psnr", pa.float64(), "under the primary protocol", "dB"),
    ]
)

DIFFERENCES = pa.schema(
    [
        _field("seed", pa.int64(), "of both networks' trainings"),
        _field("dataset", pa.string(), "name under evaluation.datasets"),
        _field("image", pa.string(), "file name without its ending"),
        _field("difference", pa.float64(), "of PSNR under the primary protocol, first network less second", "dB"),
    ]
)

CALIBRATION = pa.schema(
    [
        _field("claim", pa.string(), "same_images, new_images or these_weights"),
        _field("method", pa.string(), "test and interval"),
        _field("model", pa.string(), "what the grids were drawn from"),
        _field("seeds", pa.int64(), "of a grid"),
        _field("images", pa.int64(), "of a grid"),
        _field("interaction_db", pa.float64(), "standard deviation of an image's persistent effect on an arm", "dB"),
        _field("effect_db", pa.float64(), "the true difference", "dB"),
        _field("what", pa.string(), "rejection under no effect, coverage of the interval, or power"),
        _field("rate", pa.float64(), "share of the grids"),
        _field("low", pa.float64(), "lower end of the rate's 95% interval"),
        _field("high", pa.float64(), "its upper end"),
        _field("grids", pa.int64(), "simulated"),
        _field("nominal", pa.float64(), "what the rate should be; NaN for power"),
    ]
)

PACKED = pa.schema(
    [
        _field("run", pa.string(), "id"),
        _field("files", pa.string(), "JSON: name of each text file -> content"),
    ]
)

RUN_TABLES = {"images": IMAGES, "scalars": SCALARS, "costs": COSTS}
TABLES = {
    **RUN_TABLES,
    "bench": BENCH,
    "noise_floor": NOISE_FLOOR,
    "differences": DIFFERENCES,
    "calibration": CALIBRATION,
}
