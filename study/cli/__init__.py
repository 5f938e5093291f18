"""The command `study`: verbs only. Each imports what it needs, so that judging works without torch."""

import errno
import sys

from rich.console import Console

from study import StudyError
from study.cli import benchmarks, evidence, grids, networks, records
from study.cli.options import app

__all__ = ["app", "benchmarks", "evidence", "grids", "main", "networks", "records"]

REFUSALS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)


def main() -> None:
    """Runs the command; what its user can put right is one message on standard error and exit code 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        Console(stderr=True).print(f"{error}: this verb needs it; `pip install -e .` installs all", style="red")
        sys.exit(2)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        said = f"the system refuses: {error}"
        Console(stderr=True).print(said, style="red", highlight=False, markup=False, emoji=False, soft_wrap=True)
        sys.exit(2)
    except StudyError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False, emoji=False, soft_wrap=True)
        sys.exit(2)
