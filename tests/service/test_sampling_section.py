"""The run file's sampling section: what it accepts, what a store must have for it, and the mode it makes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sampling.neighbors import NeighborSampler
from service.run_file import RunFile, parse_run_text
from service.sampling_section import SamplingSection, check_sampling, sampling_mode
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.store import Store

MINIMAL = "run: {name: a}\ndata: {store: s}\nobjective: {name: graphmae}\n"
READS = "user:reads:item"


def parse(*overrides: str) -> RunFile:
    return parse_run_text(MINIMAL, place="run.yaml", overrides=overrides)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Users with times, items without; readings with times and weights, friendships with neither."""
    folder: Path = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    users, items = np.arange(40), np.arange(100, 130)
    pq.write_table(pa.table({"id": users, "timestamp": users * 1000}), folder / "users.parquet")
    pq.write_table(pa.table({"id": items}), folder / "items.parquet")
    reads = {
        "src": rng.choice(users, 300), "dst": rng.choice(items, 300),
        "weight": rng.random(300).astype(np.float32), "timestamp": rng.integers(0, 40_000, 300),
    }  # fmt: skip
    pq.write_table(pa.table(reads), folder / "reads.parquet")
    knows = {"src": rng.choice(users, 100), "dst": rng.choice(users, 100)}
    pq.write_table(pa.table(knows), folder / "knows.parquet")
    settings = IngestSettings(
        nodes={"user": str(folder / "users.parquet"), "item": str(folder / "items.parquet")},
        edges={READS: str(folder / "reads.parquet"), "user:knows:user": str(folder / "knows.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(folder / "store"))
    return Store.open(str(folder / "store"))


def test_a_hop_may_name_its_relations_in_the_file_and_on_the_command_line() -> None:
    run = parse('sampling.fanouts=[3, {"user:reads:item": -1, "user:knows:user": 0}]', "sampling.mode=labor")
    assert run.sampling.fanouts == (3, {READS: -1, "user:knows:user": 0})
    again = parse_run_text(run.to_yaml(), place="run.yaml")
    assert again.sampling == run.sampling
    assert yaml.safe_load(run.to_yaml())["sampling"]["mode"] == "labor"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sampling.fanouts=[3, {a: x}]", ["sampling.fanouts.1=", "an integer, or a mapping"]),
        ("sampling.fanouts=[3, [4]]", ["sampling.fanouts.1=", "an integer, or a mapping"]),
        ("sampling.fanouts=[2.5]", ["sampling.fanouts.0=2.5"]),
        ("sampling.mode=random", ['sampling.mode="random"', "'temporal-latest'", "'ppr'"]),
        ("sampling.batch_dependency=0", ["sampling.batch_dependency=0", "greater than or equal to 1"]),
        ("sampling.batch_dependency=8", ["batch_dependency=8 is for mode labor, not for uniform"]),
    ],
)
def test_what_means_nothing_is_refused(override: str, parts: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        parse(override)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_store_must_have_what_the_section_asks_for(store: Store) -> None:
    check_sampling(SamplingSection(fanouts=(3, {READS: 2})), store, seed_types=())
    with pytest.raises(BadInput, match=r"unknown relation 'user:likes:item'.*user:reads:item"):
        check_sampling(SamplingSection(fanouts=({"user:likes:item": 2},)), store, seed_types=())
    with pytest.raises(BadInput, match="user:knows:user has no timestamps"):
        check_sampling(SamplingSection(fanouts=(3,), mode="temporal-latest"), store, seed_types=("user",))
    timed = SamplingSection(fanouts=({READS: 3},), mode="temporal-latest")
    check_sampling(timed, store, seed_types=("user",))
    with pytest.raises(BadInput, match="nodes of type item have no timestamps"):
        check_sampling(timed, store, seed_types=())


def test_a_temporal_mode_reads_the_times_of_nodes_and_samples_with_them(store: Store) -> None:
    section = SamplingSection(fanouts=({str(store.relations[0].relation): 3, READS: 3},), mode="temporal-uniform")
    mode = sampling_mode(section, store)
    assert mode.node_times is not None
    user = store.type_index("user")
    first, last = store.type_offsets[user : user + 2]
    assert sorted(mode.node_times[first:last].tolist()) == (np.arange(40) * 1000).tolist()
    assert not np.delete(mode.node_times, np.arange(first, last)).any()
    assert sampling_mode(SamplingSection(mode="labor", batch_dependency=9), store).batch_dependency == 9
    timed = {str(info.relation): 3 for info in store.relations if info.has_timestamp}
    sampler = NeighborSampler(store.topology(), fanouts=(timed, timed), seed=0, mode=mode)
    sample = sampler.sample(np.arange(first, last), epoch=0, step=0)
    assert sample.times is not None
    assert sample.times[:40].tolist() == mode.node_times[first:last].tolist()
    assert sum(hop.position.size for hop in sample.hops) > 0
