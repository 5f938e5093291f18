"""Writes ablations/grid.schema.json from the declared classes."""

import json
from pathlib import Path

from study.grid.schema import json_schema

if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "ablations" / "grid.schema.json"
    target.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
