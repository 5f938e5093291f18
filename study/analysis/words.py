"""Sentences with numbers in them: Markdown in which Jinja expressions ask for what was measured."""

from collections.abc import Mapping

import jinja2

from study import StudyError
from study.analysis.comparisons import Comparison, compare_declared
from study.analysis.markup import Markdown
from study.analysis.results import Results
from study.analysis.verdicts import interval, signed


class WordsError(StudyError):
    """A sentence asks for what is not there; the message quotes it."""


class Words:
    """Fills in the numbers of a study's sentences.

    A sentence knows `effect(grid, comparison)` with its unit, `ends(grid, comparison)` for the interval,
    `seeds(grid, comparison)` for the differences of each seed, `mean(grid, cell)`, `spread(grid, cell)` over seeds, and
    `parameters(grid, cell)`.
    """

    def __init__(self, studies: Mapping[str, Results]) -> None:
        self.studies = studies
        self._found: dict[str, dict[str, Comparison]] = {}
        self._environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        asked = (self.effect, self.ends, self.seeds, self.mean, self.spread, self.parameters)
        self._environment.globals = {ask.__name__: ask for ask in asked}

    def __call__(self, text: str) -> Markdown:
        """The sentence as Markdown.

        Raises:
            WordsError: it asks for a grid, cell or comparison that is not there.
        """
        try:
            return Markdown(self._environment.from_string(text).render())
        except (jinja2.TemplateError, KeyError, IndexError) as error:
            raise WordsError(f"reports/findings.yaml: {error}: {' '.join(text.split())[:300]}") from None

    def comparisons(self, grid: str) -> Mapping[str, Comparison]:
        """The declared comparisons of a grid by their labels."""
        if grid not in self._found:
            self._found[grid] = {one.label: one for one in compare_declared(self.studies[grid])}
        return self._found[grid]

    def effect(self, grid: str, comparison: str, digits: int = 2) -> str:
        one = self.comparisons(grid)[comparison]
        return signed(one.estimate, one.measure.unit, digits)

    def ends(self, grid: str, comparison: str, digits: int = 2) -> str:
        test = self.comparisons(grid)[comparison].test
        return interval(test.low, test.high, digits)

    def seeds(self, grid: str, comparison: str) -> dict[int, float]:
        deltas = self.comparisons(grid)[comparison].deltas
        return dict(zip(deltas.seeds, map(float, deltas.values.mean(axis=1)), strict=True))

    def mean(self, grid: str, cell: str) -> float:
        results = self._cell(grid, cell)
        return results.mean(cell, results.primary)

    def spread(self, grid: str, cell: str) -> float:
        results = self._cell(grid, cell)
        return float(results.means(cell, results.primary).std(ddof=1))

    def parameters(self, grid: str, cell: str) -> float:
        costs = self._cell(grid, cell).rows("costs")
        return float(costs.loc[(costs["cell"] == cell) & (costs["name"] == "parameters"), "value"].max())

    def _cell(self, grid: str, cell: str) -> Results:
        results = self.studies[grid]
        if cell not in results.cells:
            raise KeyError(f"no cell {cell!r} in {grid}")
        return results
