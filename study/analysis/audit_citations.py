"""Which published numbers belong beside an audit: those of networks whose weights are the published ones."""

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd

from study.analysis.audit import PLAIN, network_names
from study.analysis.published import Cited
from study.analysis.reproduction import Reproduction, method_of, reproduce_weights
from study.grid.schema import Run


def tell_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """The audit with the role behind the names of two networks that are called alike."""
    names = network_names(frame)
    alike = len(set(names.values())) < len(names)
    return frame.assign(network=[f"{names[role]} ({role})" for role in frame.role]) if alike else frame


def cite_audit(
    frame: pd.DataFrame, runs: Mapping[str, Run], numbers: Iterable[Cited]
) -> tuple[dict[tuple[str, str, str], float], list[str]]:
    """What was published of the audited networks.

    A network of a published size can have any weights. They count as the published ones where their plain outputs give
    at least half of the numbers that can be compared, under the protocol of each, to the last printed digit: CFSR's
    own weights miss its B100 (ours).

    Args:
        frame: as `audit.audit_moves` takes it; two networks are called alike only where `tell_apart` was not asked.
        runs: role -> what the network is; a role that is not in it, such as a training of our own, has nothing cited.
        numbers: all published ones.

    Returns:
        (network, dataset, metric) -> the printed number, as `audit.audit_moves` takes it; and why some are not shown.
    """
    cited: dict[tuple[str, str, str], float] = {}
    notes: list[str] = []
    numbers = list(numbers)
    for role, name in network_names(frame).items():
        if role not in runs:
            continue
        found = dict(_reproductions(frame.query("role == @role"), runs[role], numbers))
        judged = {place: one for place, one in found.items() if one.verdict != "not comparable"}
        same = sum(one.verdict == "reproduced" for one in judged.values())
        notes += [
            f"What was published of {method_of(runs[role])} on {dataset} is not shown: {reason}."
            for dataset, reason in {place[0]: one.reason for place, one in found.items() if place not in judged}.items()
        ]
        if 2 * same >= len(judged):
            cited |= {(name, *place): one.cited.number for place, one in judged.items() if one.cited}
        else:
            notes.append(
                f"What was published of {method_of(runs[role])} is not shown: the weights of {name} give {same} of "
                f"{len(judged)} numbers to the last digit, so they are others."
            )
    return cited, notes


def _reproductions(
    frame: pd.DataFrame, run: Run, numbers: list[Cited]
) -> Iterator[tuple[tuple[str, str], Reproduction]]:
    """(dataset, metric) and the verdict; the last of a place is the best where no protocol is printed."""
    groups = (
        frame.query(f"setting == {PLAIN!r}")
        .groupby(["dataset", "protocol", "metric"], sort=False)["value"]
        .agg(["mean", "size"])
    )
    found = []
    for (dataset, protocol, metric), mean, images in groups.itertuples():
        one = reproduce_weights(run, dataset, protocol, metric, mean, images, numbers)
        found += [((dataset, metric), one)] if one is not None else []
    yield from sorted(found, key=lambda item: item[1].verdict == "reproduced")
