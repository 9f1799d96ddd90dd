#!/usr/bin/env bash
# Hugging Face `datasets` and a Parquet file with a MAP column.
#
# One would guess: MAP is a standard Parquet type, so the column becomes a list of pairs or a dictionary; at worst it is
# refused by itself, and `columns=` that leaves it out reads the rest.
# What happens: no column of the file can be read, with or without `columns=`, streaming or not. The features are
# derived from the whole Arrow schema before columns are selected.
# Why it matters: pyarrow, pandas, polars and DuckDB write and read MAP, so a data set that opens everywhere else stays
# closed to `datasets` because of one small column, even when that column is not asked for. A list of (key, value) structs holds
# the same values and opens.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "datasets==5.2.0" "pyarrow>=17"
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import datasets
import pyarrow as pa
import pyarrow.parquet as pq

print("datasets", datasets.__version__, "pyarrow", pa.__version__)
texts = pa.array([[("en", "a face")], [("en", "another face")]], pa.map_(pa.string(), pa.string()))
pq.write_table(pa.table({"id": [1, 2], "texts": texts}), "map.parquet")
pairs = pa.array([[{"key": "en", "value": "a face"}], [{"key": "en", "value": "another face"}]])
pq.write_table(pa.table({"id": [1, 2], "texts": pairs}), "pairs.parquet")

def outcome(name, **options):
    try:
        rows = list(datasets.load_dataset("parquet", data_files=name, split="train", cache_dir="cache", **options))
        return f"{len(rows)} rows, first {rows[0]}"
    except ValueError as error:
        return f"ValueError: {error}"

results = {
    "map, all columns": outcome("map.parquet"),
    "map, columns=['id']": outcome("map.parquet", columns=["id"]),
    "map, streaming": outcome("map.parquet", streaming=True),
    "list of structs": outcome("pairs.parquet"),
}
for case, result in results.items():
    print(f"{case:22} {result}")
refused = [case for case, result in results.items() if result.startswith("ValueError")]
assert refused == ["map, all columns", "map, columns=['id']", "map, streaming"], f"the behaviour changed: {refused}"
PYTHON
