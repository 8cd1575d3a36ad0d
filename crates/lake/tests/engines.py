"""Reads the lake's tables with other engines and prints what they count, as JSON.

Usage: engines.py LAKE_DIR   (packages: deltalake, duckdb)
"""

import json
import sys

import duckdb
from deltalake import DeltaTable, QueryBuilder

SIGNALS = """
    select count(*), count(value), sum(value), count(text), count(distinct vehicle_id),
           min(epoch_us(time)) / 1e6, sum("offset")::bigint
    from signals
"""
MESSAGES = """
    select count(*), sum(octet_length(payload))::bigint, sum("offset")::bigint, count(distinct id)
    from messages
"""


def by_duckdb(tables):
    """DuckDB on the Parquet files that the Delta log names."""
    connection = duckdb.connect()
    for name, table in tables.items():
        files = ", ".join(f"'{uri.removeprefix('file://')}'" for uri in table.file_uris())
        connection.execute(
            f"create view {name} as select * from read_parquet([{files}], hive_partitioning = true)"
        )
    return {
        "signals": list(connection.execute(SIGNALS).fetchone()),
        "messages": list(connection.execute(MESSAGES).fetchone()),
    }


def by_deltalake(tables):
    """The Python package's own reader: rows as Arrow, counted by DuckDB."""
    connection = duckdb.connect()
    for name, table in tables.items():
        reader = QueryBuilder().register(name, table).execute(f"select * from {name}")
        connection.register(name, reader.read_all())
    return {
        "signals": list(connection.execute(SIGNALS).fetchone()),
        "messages": list(connection.execute(MESSAGES).fetchone()),
    }


def main(lake):
    tables = {
        "signals": DeltaTable(f"{lake}/silver/signals"),
        "messages": DeltaTable(f"{lake}/bronze/messages"),
    }
    result = {"deltalake": by_deltalake(tables), "duckdb": by_duckdb(tables)}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
