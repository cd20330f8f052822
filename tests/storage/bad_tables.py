"""Tables that break a rule, one way each, and what the message about them must hold."""

import pyarrow as pa

from tests.storage.broken import (
    GOOD,
    INF,
    MORE,
    NAN,
    Case,
    asked,
    broken,
    damage_a_page,
    edges_table,
    features,
    fixed,
    in_edges,
    in_nodes,
    in_second_file,
    overwrite,
    truncate,
)

FLOATS, NODE, EDGE = pa.list_(pa.float32()), "nodes/part0.parquet, column ", "edges/part0.parquet, column "
CASES: dict[str, Case] = {
    # ids
    "missing id": in_nodes(NODE + "id, row 1", "null (2 of 5 rows)", "fill the column", id=[10, None, 12, None, 13]),
    "duplicate id": in_nodes(
        NODE + "id, row 4",
        "11",
        NODE + "id, row 1",
        "2 of 6 rows",
        "unique",
        "remove the repeated",
        id=[10, 11, 12, 13, 11, 11],
    ),
    "duplicate id across files": Case(
        ("nodes/part2.parquet, column id, row 0", NODE + "id, row 0", "4 of 12 rows"),
        nodes=[GOOD, MORE, GOOD],
    ),
    "duplicate string id": in_nodes(NODE + "id, row 2", "'b'", "row 1", "1 of 3 rows", id=["a", "b", "b"]),
    "float ids": in_nodes(NODE + "id", "double (2 rows)", "int64 or string", "cast", id=[1.0, 2.0]),
    "uint64 ids": in_nodes(NODE + "id", "uint64", "int64 or string", id=pa.array([1, 2], pa.uint64())),
    # edges' ends
    "dangling dst": Case(
        ("edges/part1.parquet, column dst, row 1", "unknown node 99", "2 of 6 rows", "--dangling drop"),
        edges=[edges_table(), pa.table({"src": [10, 11, 12], "dst": [11, 99, 98]})],
    ),
    "dangling src": in_edges(EDGE + "src, row 2", "unknown node -5", "1 of 3 rows", src=[10, 11, -5]),
    "all edges dangling under drop": asked(
        in_edges(EDGE + "src", "no row is left", "3 of 3 rows", "check that src and dst", src=[1, 2, 3]),
        dangling="drop",
    ),
    "string src against int64 ids": in_edges(
        EDGE + "src",
        "string (3 rows)",
        "int64 as the ids of node type node",
        "cast src to int64",
        src=["10", "11", "12"],
    ),
    "int dst against string ids": Case(
        (EDGE + "dst", "int64 (1 rows)", "string as the ids", "cast dst"),
        nodes=[pa.table({"id": ["a", "b"]})],
        edges=[pa.table({"src": ["a"], "dst": [1]})],
    ),
    # nulls
    "null src": in_edges(EDGE + "src, row 1", "null (1 of 3 rows)", src=[10, None, 12]),
    "null weight": in_edges(EDGE + "weight, row 2", "null (1 of 3 rows)", weight=[1.0, 2.0, None]),
    "null edge time": in_edges(EDGE + "timestamp, row 0", "null (1 of 3 rows)", timestamp=[None, 1, 2]),
    "null label": in_nodes(NODE + "label, row 2", "null (1 of 4 rows)", label=[0, 1, None, 1]),
    "all labels null": in_nodes(NODE + "label", "null (4 rows)", "int64", label=pa.nulls(4)),
    "null split": in_nodes(NODE + "split, row 1", "null (2 of 4 rows)", split=["train", None, None, "test"]),
    "null node time": in_nodes(NODE + "timestamp, row 3", "null (1 of 4 rows)", timestamp=[1, 2, 3, None]),
    "null features": in_nodes(NODE + "features, row 2", "null (1 of 4 rows)", features=features(bad={2: None})),
    "null inside features": in_second_file(
        "nodes/part1.parquet, column features, row 1",
        "null (2 of 8 rows)",
        features=features(bad={1: [1.0, None], 3: [None, None]}),
    ),
    # values
    "nan feature": in_second_file(
        "nodes/part1.parquet, column features, row 1",
        "nan at index 0",
        "2 of 8 rows",
        "finite",
        "--nan zero",
        features=features(bad={1: [NAN, NAN], 3: [1.0, NAN]}),
    ),
    "infinite feature": in_nodes(
        NODE + "features, row 3",
        "-inf at index 1",
        "1 of 4 rows",
        "--nan zero",
        features=features(bad={3: [1.0, -INF]}, dtype=pa.float16()),
    ),
    "nan in a named column": asked(
        in_nodes(NODE + "y, row 1", "nan", "2 of 4 rows", x=[1.0] * 4, y=[1.0, NAN, NAN, 1.0]),
        feature_columns=("x", "y"),
    ),
    "overflow of float16": asked(
        in_nodes(
            NODE + "features, row 1",
            "70000.0",
            "1 of 4 rows",
            "finite in float16",
            "wider --feature-dtype",
            features=features(bad={1: [70000.0, 1.0]}),
        ),
        feature_dtype="float16",
    ),
    "fractions as uint8": asked(
        in_nodes(
            NODE + "features, row 2",
            "0.5",
            "2 of 4 rows",
            "whole numbers from 0 to 255",
            "--feature-dtype float16",
            features=features(bad={2: [0.5, 1.0], 3: [256.0, 0.0]}),
        ),
        feature_dtype="uint8",
    ),
    "too large for int8": asked(
        in_nodes(
            NODE + "features, row 2",
            "200",
            "1 of 4 rows",
            "from -128 to 127",
            features=features(bad={2: [200, 1]}, dtype=pa.uint8()),
        ),
        feature_dtype="int8",
    ),
    "nan weight": in_edges(
        EDGE + "weight, row 1", "nan", "2 of 3 rows", "finite", "remove the edges", weight=[1.0, NAN, INF]
    ),
    "weight beyond float32": in_edges(EDGE + "weight, row 2", "1e+300", "1 of 3", weight=[1.0, 2.0, 1e300]),
    "negative weight": in_edges(EDGE + "weight, row 1", "-2.0", "2 of 3", ">= 0", "clip", weight=[1.0, -2.0, -3.0]),
    "unknown split": in_nodes(
        NODE + "split, row 1",
        "'valid'",
        "3 of 4 rows",
        "train, val, test, none",
        "valid to val",
        split=["train", "valid", "dev", "valid"],
    ),
    "label out of range": in_nodes(
        NODE + "label, row 2", "label -2", "2 of 4 rows", "-1 when unknown", label=[0, -1, -2, -7]
    ),
    # types
    "float label": in_nodes(NODE + "label", "double", "int64", "cast", label=[0.0, 1.0, 1.0, 0.0]),
    "integer split": in_nodes(NODE + "split", "int64", "string", split=[0, 1, 1, 0]),
    "dates": in_edges(EDGE + "timestamp", "timestamp[", "int64", timestamp=pa.array([1, 2, 3], pa.timestamp("s"))),
    "string weight": in_edges(EDGE + "weight", "string", "float32", weight=["1", "2", "3"]),
    "double features without a dtype": in_nodes(
        NODE + "features",
        "double",
        "float32, float16, uint8, int8",
        "--feature-dtype float32",
        features=features(bad={}, dtype=pa.float64()),
    ),
    "features that are no list": in_nodes(NODE + "features", "double", "list of float32", features=[1.0] * 4),
    "string features": in_nodes(NODE + "features", "list", "string", features=[["a"]] * 4),
    "text in a named feature column": asked(
        in_nodes(NODE + "x", "string", "numbers", x=["1", "2", "3", "4"]), feature_columns=("x",)
    ),
    # widths, schemas, columns, emptiness
    "varying width": in_nodes(
        NODE + "features, row 1",
        "width 1, 2 in the first row",
        "2 of 4 rows",
        "same number",
        "pad or cut",
        features=pa.array([[1.0, 2.0], [1.0], [1.0, 2.0], []], FLOATS),
    ),
    "empty features": in_nodes(NODE + "features", "width 0", "at least one", features=pa.array([[]] * 4, FLOATS)),
    "another width in another file": in_second_file(
        "nodes/part1.parquet, column features",
        "[3]",
        "[2]",
        "part0.parquet",
        "types and widths",
        features=fixed([[1.0, 2.0, 3.0]] * 4, width=3),
    ),
    "another type in another file": in_second_file(
        "nodes/part1.parquet, column id",
        "string, but int64 in",
        "nodes/part0.parquet",
        id=["a", "b", "c", "d"],
        features=features(bad={}),
    ),
    "a column in some files only": in_second_file(
        "nodes/part1.parquet, column label",
        "int64, but absent in",
        "part0.parquet",
        label=[0, 1, 0, 1],
        features=features(bad={}),
    ),
    "missing id column": Case(
        (NODE + "id", "missing", "node, x", "add or rename"), nodes=[pa.table({"node": [1], "x": [2]})]
    ),
    "missing dst column in the second file": Case(
        ("edges/part1.parquet, column dst", "missing", "src"), edges=[edges_table(), pa.table({"src": [10]})]
    ),
    "no named feature column": asked(
        in_nodes("xx", "in no table of node", "correct the names", x=[1, 2, 3, 4]), feature_columns=("xx",)
    ),
    "some named feature columns": asked(
        in_nodes(NODE + "y", "missing", "must have all", x=[1, 2, 3, 4]), feature_columns=("x", "y")
    ),
    "features as a named feature column": asked(
        in_nodes("--feature-columns", "features", "id, label, split", "without named columns", x=[1, 2, 3, 4]),
        feature_columns=("features",),
    ),
    "id as a named feature column": asked(
        in_nodes("--feature-columns", "id", "meanings of their own", "leave the name out"), feature_columns=("id",)
    ),
    "label beside a feature column": asked(
        in_nodes("--feature-columns", "label", "meanings of their own", x=[1, 2, 3, 4], label=[0, 1, 0, 1]),
        feature_columns=("x", "label"),
    ),
    "a feature column twice": asked(
        in_nodes("--feature-columns", "x twice", "named once", "remove", x=[1, 2, 3, 4]), feature_columns=("x", "x")
    ),
    "a reserved name before any table is opened": Case(
        ("--feature-columns", "split"),
        settings={"nodes": {"node": "FOLDER/none.parquet"}, "feature_columns": ("split",)},
    ),
    "empty node table": Case(("nodes", "0 rows", "at least one row", "leave the table out"), nodes=[GOOD.slice(4)]),
    "empty edge table": Case(("edges", "0 rows", "at least one row"), edges=[edges_table().slice(3)]),
    # files
    "truncated file": broken("nodes/part0.parquet", breaks=truncate("nodes/part0.parquet")),
    "truncated second edge file": broken("edges/part1.parquet", breaks=truncate("edges/part1.parquet"), edge_files=2),
    "damaged page": broken("edges/part0.parquet", breaks=damage_a_page),
    "not Parquet": broken("edges/part0.parquet", breaks=overwrite("edges/part0.parquet", b"src,dst\n1,2\n" * 9)),
    "zero bytes": broken("edges/part0.parquet", breaks=overwrite("edges/part0.parquet", b"")),
    "no file matches the glob": Case(
        ("nodes/*.pq", "no file matches", "quote a glob"), settings={"nodes": {"node": "FOLDER/nodes/*.pq"}}
    ),
    "no such file": Case(
        ("none.parquet", "no file matches", "check the path"),
        settings={"nodes": {"node": "FOLDER/none.parquet"}},
    ),
    "a folder without Parquet": Case(
        ("no file matches",), breaks=overwrite("x/y.csv", b"a"), settings={"nodes": {"node": "FOLDER/x"}}
    ),
    "unknown scheme": Case(
        ("nosuch://x/nodes.parquet", "reachable", "check URL and credentials"),
        settings={"nodes": {"node": "nosuch://x/nodes.parquet"}},
    ),
    # settings
    "relation with an unknown type": Case(
        ("node:to:nod", "unknown node type nod", "the node types are node", "--nodes nod=URL"),
        settings={"edges": {"node:to:nod": "FOLDER/edges"}},
    ),
    "malformed relation": Case(("'to'", "source:name:target"), settings={"edges": {"to": "FOLDER/edges"}}),
    "bad type name": Case(("a/b", "names are letters"), settings={"nodes": {"a/b": "FOLDER/nodes"}}),
    "bad fanout": Case(("fanout (5, 0)", ">= 1, or -1"), settings={"fanout": (5, 0)}),
    "no edge table": Case(("--edges", "at least one edge table"), settings={"edges": {}}),
}
