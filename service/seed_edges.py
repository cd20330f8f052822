"""Seeds that are edges, where an objective predicts them: their relation, order and negatives."""

from sampling.edge_seeds import EdgeSampling
from sampling.exclusion import turns_of
from sampling.modes import SamplingMode
from sampling.open_source import topology_bytes
from sampling.seeds import EdgeOrder, SeedOrder
from service.link_tables import relation_index
from service.objectives.edgemask import EdgeMaskConfig
from service.objectives.multitask import MultitaskConfig
from service.run_file import RunFile
from storage.errors import BadInput
from storage.graph import Topology
from storage.store import Store


def has_seed_edges(run: RunFile) -> bool:
    """Whether the objective, or one of its tasks, predicts seed edges: then the seeds of all of them are edges."""
    tasks = run.objective.tasks if isinstance(run.objective, MultitaskConfig) else (run.objective,)
    return any(isinstance(task, EdgeMaskConfig) and task.targets == "seeds" for task in tasks)


def seed_relation(run: RunFile, store: Store) -> int:
    """Number of the relation whose edges are seeds; BadInput lists the relations there are."""
    return relation_index(
        store, run.sampling.seed_relation, key="sampling.seed_relation", remedy="name the one whose edges are seeds"
    )


def check_seed_edges(run: RunFile, store: Store) -> None:
    """BadInput for keys of seed edges where seeds are nodes, for those of seed nodes, and for edges that cannot be."""
    if not has_seed_edges(run):
        if run.sampling.seed_relation is not None:
            raise BadInput(
                f"sampling.seed_relation={run.sampling.seed_relation}",
                f"the seeds of objective {run.objective.name} are nodes",
                rule="a relation of seeds is for an objective that predicts seed edges",
                remedy="leave it out, or set objective.name=edgemask and objective.targets=seeds",
            )
        return
    if run.data.seed_types:
        raise BadInput(
            f"data.seed_types={list(run.data.seed_types)}",
            "seeds are edges",
            rule="the ends of seed edges are of the types that sampling.seed_relation joins",
            remedy="leave it out",
        )
    info = store.relations[seed_relation(run, store)]
    if info.num_edges == 0:
        raise BadInput(
            f"seed edges of relation {info.relation}",
            "none",
            rule="training needs at least one seed edge",
            remedy="choose another sampling.seed_relation",
        )
    for key, given in (
        ("tiers.topology=disk", run.tiers.topology == "disk"),
        ("workers.samplers", run.workers.samplers),
    ):
        if given:
            raise BadInput(
                key,
                "seeds are edges",
                rule="seed edges are sampled from a topology in memory, by the worker's own threads",
                remedy="leave it out, with tiers.memory_bytes above the topology, or set objective.targets=hidden",
            )
    if SamplingMode(run.sampling.mode).is_temporal and not info.has_timestamp:
        raise BadInput(
            f"sampling.mode={run.sampling.mode}",
            f"edges of relation {info.relation} have no timestamps",
            rule="in temporal modes a seed edge has a time",
            remedy="ingest the relation with a column timestamp, or choose another sampling.mode",
        )


def seed_types_of(run: RunFile, store: Store) -> list[str]:
    """Node types that seeds are of."""
    if not has_seed_edges(run):
        return list(run.data.seed_types) or [kind.name for kind in store.node_types]
    relation = store.relations[seed_relation(run, store)].relation
    return list(dict.fromkeys((relation.source, relation.target)))


def seed_edge_order(store: Store, run: RunFile) -> EdgeOrder:
    """The order of a run's seed edges, by their places in the relation's CSC: each stored edge once an epoch."""
    return EdgeOrder(
        None,
        num_nodes=store.relations[seed_relation(run, store)].num_edges,
        seeds_per_step=run.sampling.seeds_per_step,
        seed=run.run.seed,
    )


def seed_edges(run: RunFile, store: Store, topology: Topology, *, order: SeedOrder) -> EdgeSampling | None:
    """What makes batches of seed edges; None where `order` is of nodes."""
    return make_edge_sampling(run, store, topology) if isinstance(order, EdgeOrder) else None


def make_edge_sampling(run: RunFile, store: Store, topology: Topology) -> EdgeSampling:
    """What makes batches of the edges of a run's relation; deleted nodes are no negatives."""
    index = seed_relation(run, store)
    relation = store.relations[index].relation
    replaced = relation.target if run.sampling.negative_side == "target" else relation.source
    return EdgeSampling(
        topology,
        index,
        turns_of(store.relations),
        seed=run.run.seed,
        num_negatives=run.sampling.num_negatives,
        side=run.sampling.negative_side,
        candidates=store.live_ids(replaced) if store.deleted(replaced).size else None,
        timed=SamplingMode(run.sampling.mode).is_temporal,
    )


def check_topology_fits(run: RunFile, store: Store, *, memory_bytes: int, process_bytes: int) -> None:
    """BadInput where a budget does not hold the topology, which seed edges are sampled from."""
    needed = topology_bytes(store)
    if needed > memory_bytes - process_bytes:
        raise BadInput(
            f"tiers.memory_bytes={memory_bytes}",
            f"{process_bytes} bytes are in use already, and the topology takes {needed}",
            rule="seed edges are sampled from a topology in memory",
            remedy=f"raise tiers.memory_bytes well above {process_bytes + needed}, or set objective.targets=hidden",
        )
