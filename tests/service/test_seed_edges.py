"""Runs whose seeds are edges: what their batches hold, order, resuming, and what is refused."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from sampling.batch import MiniBatch
from service.checkpoint import list_checkpoints, read_checkpoint
from service.group import Group
from service.preparation import prepare
from service.pretraining import pretrain
from service.run_file import RunFile, load_run_file
from service.seed_edges import seed_edge_order, seed_edges
from service.streaming import FromMemory, open_batches
from service.tier_budget import planned_stream
from storage.delete import DeleteSettings, delete
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.place import Place
from storage.progress import NoProgress
from storage.schema import Relation
from storage.store import Store
from tests.data import small_run, small_store
from tests.service.test_early_stop import InterruptedAt

READS, KNOWS = "user:reads:item", "user:knows:user"
NUM_USERS, NUM_ITEMS, NUM_READS = 60, 40, 290


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of users, who have no features, and items, who are named by strings."""
    folder = tmp_path_factory.mktemp("readers")
    rng = np.random.default_rng(0)
    items = [f"item {number}" for number in range(NUM_ITEMS)]
    features = pa.FixedSizeListArray.from_arrays(rng.normal(size=NUM_ITEMS * 6).astype(np.float32), 6)
    pq.write_table(pa.table({"id": np.arange(NUM_USERS)}), folder / "users.parquet")
    pq.write_table(pa.table({"id": items, "features": features}), folder / "items.parquet")
    reads = {
        "src": rng.integers(0, NUM_USERS, NUM_READS),
        "dst": [items[number] for number in rng.integers(0, NUM_ITEMS, NUM_READS)],
    }
    pq.write_table(pa.table(reads), folder / "reads.parquet")
    knows = {"src": rng.integers(0, NUM_USERS, 100), "dst": rng.integers(0, NUM_USERS, 100)}
    pq.write_table(pa.table(knows), folder / "knows.parquet")
    settings = IngestSettings(
        nodes={"user": str(folder / "users.parquet"), "item": str(folder / "items.parquet")},
        edges={READS: str(folder / "reads.parquet"), KNOWS: str(folder / "knows.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(folder / "store"))
    return folder


SEED_EDGES = {"name": "edgemask", "targets": "seeds", "decoder_dim": 8}


def run_of(
    folder: Path,
    *overrides: str,
    store: Path | None = None,
    name: str = "edges",
    objective: dict[str, Any] = SEED_EDGES,
) -> RunFile:
    document: dict[str, Any] = {
        "run": {"name": name, "storage": str(folder / "runs"), "seed": 3},
        "data": {"store": str((store or folder) / "store")},
        "sampling": {"fanouts": [4, 4], "seeds_per_step": 64, "seed_relation": READS, "num_negatives": 2},
        "encoder": {"name": "sage", "hidden_dim": 16, "norm": "batch", "feature_dropout": 0.2},
        "objective": objective,
        "training": {"epochs": 4, "log_every_steps": 1, "checkpoint_every_steps": 3, "num_compute_threads": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_run_file(str(path), overrides=overrides)


def batches_of(run: RunFile, *, last_step: int) -> list[MiniBatch]:
    """The first batches, as training takes them."""
    prepared = prepare(run, group=Group(), state=None)
    with ExitStack() as opened:
        source, _ = open_batches(
            run, prepared, group=Group(), device=torch.device("cpu"), opened=opened, progress=NoProgress()
        )
        return list(source.batches(first_step=0, last_step=last_step))


def places(batch: MiniBatch) -> list[int]:
    assert batch.pairs is not None
    found: list[int] = batch.pairs.position.tolist()
    return found


def test_an_epoch_has_every_edge_once_in_an_order_of_its_own_seed(readers: Path) -> None:
    steps = -(-NUM_READS // 64)
    batches = batches_of(run_of(readers), last_step=2 * steps)
    assert [len(places(batch)) for batch in batches] == 2 * [64, 64, 64, 64, NUM_READS - 256]
    first, second = (
        [place for batch in batches[start : start + steps] for place in places(batch)] for start in (0, steps)
    )
    assert sorted(first) == sorted(second) == list(range(NUM_READS))
    assert len({tuple(first), tuple(second), tuple(range(NUM_READS))}) == 3
    again = batches_of(run_of(readers), last_step=1)[0]
    other = batches_of(run_of(readers, "run.seed=4"), last_step=1)[0]
    assert places(again) == first[:64] != places(other)


def test_no_block_holds_a_target_edge_or_its_reverse_and_pairs_are_those_of_the_store(readers: Path) -> None:
    run = run_of(readers, "sampling.fanouts=[-1,-1]", "sampling.negative_side=source")
    topology = Store.open(run.data.store).topology()
    names = [relation.relation for relation in topology.relations]
    reads = names.index(Relation.parse(READS))
    (turned,) = [number for number, name in enumerate(names) if (name.source, name.target) == ("item", "user")]
    edges = topology.relations[reads]
    ends = np.repeat(np.arange(edges.indptr.size - 1), np.diff(edges.indptr))
    for batch in batches_of(run, last_step=5):
        pairs = batch.pairs
        assert pairs is not None
        assert batch.num_seeds == batch.num_seeds_global
        assert (pairs.relation, pairs.replaces_source) == (reads, True)
        targets = list(zip(batch.node_id[pairs.source].tolist(), batch.node_id[pairs.target].tolist(), strict=True))
        assert targets == list(zip(edges.indices[pairs.position].tolist(), ends[pairs.position].tolist(), strict=True))
        assert (batch.node_type[pairs.negative] == edges.source_type).all()
        assert pairs.negative.shape == (len(targets), 2)
        num_held = 0
        for hop in batch.hops:
            for number in (reads, turned):
                for row in range(hop.num_targets):
                    first, last = hop.indptr[number, row], hop.indptr[number, row + 1]
                    for source in batch.node_id[hop.source[first:last].long()].tolist():
                        edge = (source, int(batch.node_id[row]))
                        assert (edge if number == reads else edge[::-1]) not in targets
                        num_held += 1
        assert num_held > 100


def test_a_stopped_run_ends_with_the_bytes_of_a_whole_one(readers: Path, tmp_path: Path) -> None:
    whole = run_of(tmp_path, store=readers, name="whole")
    done = pretrain(whole, progress=NoProgress())
    assert done.step == done.total_steps == 20
    stopped = run_of(tmp_path, store=readers, name="stopped")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped, progress=InterruptedAt(8))
    assert pretrain(stopped, progress=NoProgress()).step == 20
    contents = []
    for run in (whole, stopped):
        place = Place(str(Path(run.run.storage) / run.run.name))
        contents.append(read_checkpoint(place, list_checkpoints(place)[-1]).contents)
    assert contents[0] == contents[1]


def test_several_tasks_train_on_the_seeds_of_the_one_that_predicts_edges(readers: Path, tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        "sampling.fanouts=[4,4,4]",
        f"sampling.seed_relation={KNOWS}",
        store=readers,
        objective={"name": "multitask", "tasks": [SEED_EDGES, {"name": "bgrl"}, {"name": "edgemask"}]},
    )
    with pytest.raises(BadInput, match=r"add item to data\.seed_types"):  # the task of seed nodes has users alone
        pretrain(run, progress=NoProgress())
    run = run.model_copy(update={"sampling": run.sampling.model_copy(update={"seed_relation": READS})})
    done = pretrain(run, progress=NoProgress())
    assert done.summary is not None
    assert 0.0 < done.summary.loss < 100.0


def test_the_only_relation_needs_no_name_and_deleted_nodes_are_no_negatives(tmp_path: Path) -> None:
    small_store(tmp_path)
    gone = [10 * number for number in range(0, 300, 7)]
    pq.write_table(pa.table({"id": gone}), tmp_path / "gone.parquet")
    delete(DeleteSettings(nodes={"node": str(tmp_path / "gone.parquet")}), out=str(tmp_path / "store"))
    path = small_run(tmp_path, sampling={"fanouts": [4, 4]}, training={"max_steps": 2})
    text = path.read_text().replace("name: graphmae", "name: edgemask").replace("mask_rate: 0.5", "targets: seeds")
    path.write_text(text.replace("replace_rate: 0.1", ""))
    run = load_run_file(str(path))
    store = Store.open(run.data.store)
    topology = store.topology()
    sampling = seed_edges(run, store, topology, order=seed_edge_order(store, run))
    assert sampling is not None
    assert sampling.candidates is not None
    assert sampling.candidates.tolist() == store.live_ids("node").tolist()
    assert sampling.candidates.size == 300 - len(gone)
    positions = [place for batch in batches_of(run, last_step=40) for place in places(batch)]
    num_edges = topology.relations[0].indices.size
    assert len(positions) > num_edges
    assert sorted(positions[:num_edges]) == list(range(num_edges))
    assert pretrain(run, progress=NoProgress()).step == 2


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["sampling.seed_relation=null"], ["sampling.seed_relation: not given", READS, "name the one whose edges"]),
        (["sampling.seed_relation=user:likes:item"], ["user:likes:item is unknown", READS, KNOWS]),
        (["data.seed_types=[user]"], ["data.seed_types=['user']: seeds are edges", "leave it out"]),
        (
            ["objective.targets=hidden", "sampling.fanouts=[4,4,4]"],
            ["seeds of objective edgemask are nodes", "objective.targets=seeds"],
        ),
        (["sampling.fanouts=[4,4,4]"], ["2 encoder layers and reach 0", "list 2 fan-outs"]),
        (["sampling.mode=temporal-latest"], ["no timestamps"]),
        (["tiers.topology=disk"], ["tiers.topology=disk: seeds are edges", "tiers.memory_bytes above the topology"]),
        (["workers.samplers=2"], ["workers.samplers: seeds are edges", "leave it out"]),
    ],
)
def test_what_cannot_work_is_refused_before_a_run_is_begun(
    readers: Path, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        prepare(run_of(readers, *overrides), group=Group(), state=None)
    for part in parts:
        assert part in str(caught.value)


def assert_equal(one: MiniBatch, other: MiniBatch) -> None:
    """The same batch, bit for bit."""
    assert one.pairs is not None
    assert other.pairs is not None
    for name in ("source", "target", "negative", "position"):
        assert torch.equal(getattr(one.pairs, name), getattr(other.pairs, name))
    assert (one.num_seeds, one.num_seeds_global) == (other.num_seeds, other.num_seeds_global)
    assert torch.equal(one.node_id, other.node_id)
    for hop, again in zip(one.hops, other.hops, strict=True):
        assert torch.equal(hop.source, again.source)
        assert torch.equal(hop.position, again.position)
    for rows, served in zip(one.features, other.features, strict=True):
        assert (rows is None) == (served is None)
        assert rows is None or served is None or torch.equal(rows, served)


def test_a_stream_has_the_batches_of_a_run_in_memory(readers: Path) -> None:
    run, streamed = run_of(readers), run_of(readers, "tiers.host_cache_bytes=1KiB")
    for one, other in zip(batches_of(run, last_step=7), batches_of(streamed, last_step=7), strict=True):
        assert_equal(one, other)


def test_ranks_that_share_a_stream_have_their_shares_of_the_batches(readers: Path) -> None:
    run = run_of(readers, "tiers.host_cache_bytes=1KiB")
    prepared = prepare(run, group=Group(), state=None)
    with ExitStack() as opened:
        found = planned_stream(
            prepared.store, run, order=prepared.order, ranks=(0, 1), world_size=2, opened=opened, num_steps=6
        )
        own = [
            FromMemory(run, prepared, Group(rank=rank, world_size=2), opened, NoProgress(), device_rows=[0, 0])
            for rank in range(2)
        ]
        alone = [source.batches(first_step=0, last_step=6) for source in own]
        for batches in found.stream.batches(first_step=0, last_step=6):
            wanted = [next(source) for source in alone]
            assert len({batch.num_seeds_global for batch in wanted}) == 1
            assert sum(batch.num_seeds for batch in wanted) == wanted[0].num_seeds_global
            for one, other in zip(wanted, batches, strict=True):
                assert_equal(one, other)


def test_a_stream_without_room_for_the_topology_is_refused_with_the_remedy(readers: Path) -> None:
    run = run_of(readers, "tiers.memory_bytes=1MiB")
    with pytest.raises(BadInput, match=r"tiers\.memory_bytes=1048576: .* the topology takes \d+: .*raise"):
        batches_of(run, last_step=1)
