"""Link prediction of a finished run: what its encoder was trained on is refused, whatever is embedded."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.evaluation_report import EvaluationReport
from service.pretraining import pretrain
from service.results import embed_run, evaluate_run
from service.run_file import RunFile, load_run_file
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress
from tests.data import small_run, write_tables
from tests.service.evaluations import Told

NUM_HELD = 30


def store_of(folder: Path, name: str, edges: pa.Table, *, undirected: bool = True) -> str:
    pq.write_table(edges, folder / f"{name}.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": str(folder / f"{name}.parquet")},
        undirected=undirected,
    )
    ingest(settings, out=str(folder / name))
    return str(folder / name)


def tables(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Held-out edges and the others, of distinct unordered pairs."""
    write_tables(folder)
    drawn = pq.read_table(folder / "edges.parquet").to_pylist()
    pairs = sorted({(min(row.values()), max(row.values())) for row in drawn if row["src"] != row["dst"]})
    held = pairs[:: len(pairs) // NUM_HELD][:NUM_HELD]
    kept = sorted(set(pairs) - set(held))
    made = [pa.table({"src": [a for a, _ in some], "dst": [b for _, b in some]}) for some in (held, kept)]
    pq.write_table(made[0], folder / "held.parquet")
    return made[0], made[1]


def finished(folder: Path) -> RunFile:
    """A run of a few steps on the store `store`, to be evaluated at link prediction."""
    link = {"edges": str(folder / "held.parquet"), "num_draws": 1, "top": [5]}
    run = load_run_file(str(small_run(folder, training={"max_steps": 3}, evaluation={"tasks": ["link"], "link": link})))
    pretrain(run, progress=NoProgress())
    return run


def evaluated(run: RunFile, folder: Path, embeddings: str | None, *overrides: str) -> EvaluationReport:
    (folder / "again.yaml").write_text(run.to_yaml())
    again = load_run_file(str(folder / "again.yaml"), overrides=overrides)
    return evaluate_run(again, embeddings=embeddings, progress=NoProgress())


def test_held_out_edges_that_the_encoder_was_trained_on_are_refused_though_rows_are_of_a_store_without_them(
    tmp_path: Path,
) -> None:
    held, kept = tables(tmp_path)
    store_of(tmp_path, "store", pa.concat_tables([held, kept]))
    run = finished(tmp_path)
    rest, rows = store_of(tmp_path, "rest", kept), str(tmp_path / "rows")
    embed_run(run, store_url=rest, out=rows, progress=NoProgress())
    with pytest.raises(BadInput, match=r"30 of 30 pairs are edges of .*store, the store that the encoder was trained"):
        evaluated(run, tmp_path, rows)
    (task,) = evaluated(run, tmp_path, rows, "evaluation.link.in_store=keep").tasks
    assert task.settings["edges_in_store"] == 0


def test_an_encoder_trained_on_the_rest_is_evaluated_there_and_on_a_store_with_nodes_it_never_saw(
    tmp_path: Path,
) -> None:
    _, kept = tables(tmp_path)
    store_of(tmp_path, "store", kept)
    run = finished(tmp_path)
    embed_run(run, store_url=None, out=None, progress=NoProgress())
    (task,) = evaluated(run, tmp_path, None).tasks
    assert (task.settings["edges"], task.settings["edges_in_store"], task.settings["ranked"]) == (30, 0, 60)
    nodes = pq.read_table(tmp_path / "nodes.parquet")
    more = nodes.slice(0, 1).set_column(0, "id", pa.array([999_990]))
    pq.write_table(pa.concat_tables([nodes, more]), tmp_path / "nodes.parquet")
    wider, rows = store_of(tmp_path, "wider", kept), str(tmp_path / "rows")
    embed_run(run, store_url=wider, out=rows, progress=NoProgress())
    unseen = pa.table({"src": [999_990], "dst": [kept["src"][0].as_py()]})
    pq.write_table(unseen, tmp_path / "held.parquet")
    assert evaluated(run, tmp_path, rows).tasks[0].settings["edges"] == 1


def test_an_edge_whose_reverse_was_trained_on_is_refused_where_both_are_plain_edges(tmp_path: Path) -> None:
    held, kept = tables(tmp_path)
    reverse = held.rename_columns(["dst", "src"]).select(["src", "dst"])
    store_of(tmp_path, "store", pa.concat_tables([kept, reverse]), undirected=False)
    run = finished(tmp_path)
    embed_run(run, store_url=None, out=None, progress=NoProgress())
    with pytest.raises(BadInput, match=r"30 of 30 pairs are edges of .*either way round"):
        evaluated(run, tmp_path, None)
    (task,) = evaluated(run, tmp_path, None, "evaluation.link.in_store=keep").tasks
    assert (task.settings["edges_in_store"], task.settings["reversed_in_store"]) == (0, 30)


def test_a_missing_table_is_told_before_anything_is_read(tmp_path: Path) -> None:
    _, kept = tables(tmp_path)
    store_of(tmp_path, "store", kept)
    run = finished(tmp_path)
    embed_run(run, store_url=None, out=None, progress=NoProgress())
    told = Told()
    (tmp_path / "none.yaml").write_text(run.to_yaml())
    without = load_run_file(str(tmp_path / "none.yaml"), overrides=["evaluation.link.edges=null"])
    with pytest.raises(BadInput, match=r"evaluation\.link\.edges: not given"):
        evaluate_run(without, embeddings=None, progress=told)
    assert told.stages == []
