"""Phase 4 of a task: exact match of the predictions, a file with the percentages.

python score.py --predictions FOLDER --output FILE
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    return " ".join(text.lower().translate(PUNCTUATION).split())


def exact_match(records: Sequence[dict[str, str]]) -> float:
    """Percent."""
    hits = [normalised(r["prediction"]) == normalised(r["reference"]) for r in records]
    return 100 * sum(hits) / len(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    started = perf_counter()
    scores = {
        path.stem: exact_match(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(options.predictions.glob("*.json"))
    }
    options.output.write_text(json.dumps(scores, indent=1), encoding="utf-8")
    print(f"work seconds: {perf_counter() - started:.3f}")


if __name__ == "__main__":
    main()
