"""Small copies of public data sets, laid out as the hub lays them out."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Value

Record = Mapping[str, Any]


def save_parquet_set(
    folder: Path,
    configs: Mapping[str, Mapping[str, Sequence[Record]]],
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    rows_of_group: int = 1000,
) -> Path:
    """Parquet files below a README whose head names the configs and their files.

    Args:
        folder: of the data set.
        configs: config -> hub split -> records.
        classes: column -> the names that the files themselves give its classes.
        rows_of_group: rows of a Parquet row group.
    """
    head = ["---", "configs:"]
    for config, splits in configs.items():
        head += [f"- config_name: {config}", "  data_files:"]
        (folder / config).mkdir(parents=True, exist_ok=True)
        for split, records in splits.items():
            head += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            file = folder / config / f"{split}-00000-of-00001.parquet"
            if classes is None:
                table = pa.Table.from_pylist(list(records))
                pq.write_table(table, file, row_group_size=rows_of_group)
            else:
                features = Features(
                    {
                        name: ClassLabel(names=list(classes[name]))
                        if name in classes
                        else Value("string")
                        for name in records[0]
                    }
                )
                Dataset.from_list(list(records), features=features).to_parquet(file)
    (folder / "README.md").write_text("\n".join([*head, "---", "# A copy", ""]))
    return folder


def save_csv_set(folder: Path, splits: Mapping[str, Sequence[Record]]) -> Path:
    """``<split>.csv``, quoted throughout."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(records)
    return folder


def save_json_lines(file: Path, records: Sequence[Record]) -> Path:
    """One object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return file
