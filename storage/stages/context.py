"""What the stages of one ingest share: its settings, its place, its temporary files, its memory and workers."""

from dataclasses import dataclass

from storage.claim import Claim
from storage.ingest_settings import IngestSettings
from storage.place import Place
from storage.schema import Relation
from storage.stages.budget import Budget, floor_bytes
from storage.stages.crew import Crew
from storage.stages.means import Means
from storage.stages.node_input import NodeInput
from storage.stages.space import check_space, temporary_bytes
from storage.stages.stage_times import Stages
from storage.stages.work import Work
from storage.tables import Table


@dataclass(frozen=True)
class Context:
    """One ingest under way; `nodes` by their order in the store."""

    settings: IngestSettings
    nodes: list[NodeInput]
    place: Place
    work: Work
    crew: Crew
    stages: Stages

    @property
    def num_nodes(self) -> dict[str, int]:
        """Nodes of each type, those in the store included."""
        return {node.name: node.known.num_rows for node in self.nodes}


def open_context(
    settings: IngestSettings,
    nodes: list[NodeInput],
    edge_tables: dict[Relation, Table],
    *,
    claim: Claim,
    fingerprint: str,
    means: Means,
    more_bytes: int = 0,
) -> Context:
    """Check memory and disk, and open the temporary files of an ingest; BadInput when either is too small.

    `more_bytes` are temporary files of what does not come from the tables.
    """
    most_nodes = max(node.known.num_rows for node in nodes)
    share = means.executor.machine
    budget = Budget.checked(
        memory_bytes=means.resources.memory_bytes,
        num_workers=share.num_workers,
        num_nodes=most_nodes,
        worker_bytes=share.worker_bytes,
        fixed_bytes=share.fixed_bytes,
        copies_results=share.copies_results,
    )
    workers = means.executor.limited(budget.num_workers)
    floor = floor_bytes(most_nodes, other_bytes=share.worker_bytes + share.fixed_bytes)
    needed = temporary_bytes(nodes, edge_tables, undirected=settings.undirected) + more_bytes
    means.progress.note(
        f"memory {budget.memory_bytes / 1e9:.2f} GB (at least {floor / 1e9:.2f}), "
        f"{workers.num_workers} workers, temporary files up to {needed / 1e9:.2f} GB in {claim.folder}"
    )
    work = claim.work(fingerprint)
    if not work.resumed:
        check_space(needed, folder=claim.folder, place=claim.place)
    stages = Stages(means.progress, alive=claim.renew)
    crew = Crew(budget=budget, executor=workers, advance=stages.advance)
    return Context(settings=settings, nodes=nodes, place=claim.place, work=work, crew=crew, stages=stages)
