"""`python -m tests.training.quick …` is `study …` without timing inference, which takes most of so short a run."""

from study.cli import main
from study.training import execution

execution.measure_costs = lambda *_: []  # here, so that processes started by this one have it too

if __name__ == "__main__":
    main()
