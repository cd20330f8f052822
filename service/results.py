"""From a finished run to its results: load the encoder, embed a store, evaluate embeddings."""

import os
from dataclasses import dataclass

import torch

from service.checkpoint import Checkpoint, newest_whole, parse_checkpoint
from service.embedding import EmbeddingSource, embed
from service.embedding_files import EmbeddingManifest, read_manifest
from service.evaluation import evaluate
from service.evaluation_report import EvaluationReport
from service.group import Group
from service.link_problem import held_out_table, refuse_trained_on
from service.model import build_model
from service.preparation import pick_device, store_of
from service.run_file import RunFile
from service.run_folder import open_same_store, refuse_changes, run_place, stored_run
from service.schema import GraphSchema
from service.tiers import block_cache_of, layerwise_cache_bytes
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress
from storage.store import Store

EMBEDDINGS = "embeddings"
WORK = "work"
PICTURES = "pictures"


@dataclass(frozen=True)
class EmbeddingResult:
    """Where embeddings went and what they cost."""

    out: str
    rows: int
    dim: int
    step: int
    """training steps done by the encoder"""
    seconds: float
    host_requests: int
    host_hits: int


def newest_checkpoint(run: RunFile) -> Checkpoint:
    """The newest whole checkpoint of a run; BadInput when it has none."""
    place = run_place(run)
    whole, _ = newest_whole(place)
    if whole is not None:
        return parse_checkpoint(place, whole)
    raise BadInput(
        place.url,
        "no checkpoint",
        rule="embedding and finetuning need a pretrained encoder",
        remedy="run `hopstream pretrain` with this run file first",
    )


def settings_of(run: RunFile) -> RunFile:
    """The run file that the run was trained with; BadInput lists the keys in which `run` differs harmfully.

    Models are built from it, so they are those of the checkpoints. Where no run is stored, `run` itself.
    """
    stored = stored_run(run_place(run))
    if stored is None:
        return run
    refuse_changes(stored, run)
    return stored


def embed_run(run: RunFile, *, store_url: str | None, out: str | None, progress: Progress) -> EmbeddingResult:
    """Embed the run's store, or another of the same schema (which needs `out`), with the newest checkpoint."""
    if store_url is not None and out is None:
        raise BadInput(
            "--store",
            store_url,
            rule="embeddings of another store go to a place of their own",
            remedy="name it with --out",
        )
    checkpoint = newest_checkpoint(run)
    settings = settings_of(run)
    cache = block_cache_of(run.tiers)
    trained_on = store_of(settings, checkpoint.state, block_cache=cache)
    model = build_model(settings, GraphSchema.from_store(trained_on), group=Group())
    model.load_state_dict(checkpoint.model)
    store = trained_on if store_url is None else Store.open(Place(store_url).local("") or store_url, block_cache=cache)
    target = out or run_place(run).full(EMBEDDINGS)
    use_all_cores(run)
    report = embed(
        model.encoder,
        store=store,
        out=target,
        work=run_place(run).child(WORK),
        source=EmbeddingSource(run=run.run.name, step=checkpoint.state.step),
        cache_bytes=layerwise_cache_bytes(run.tiers),
        rows_per_chunk=run.embedding.rows_per_chunk,
        max_edges_per_chunk=run.embedding.max_edges_per_chunk,
        device=pick_device(run, local_rank=0),
        progress=progress,
    )
    return EmbeddingResult(
        out=target,
        rows=report.rows,
        dim=report.dim,
        step=checkpoint.state.step,
        seconds=report.seconds,
        host_requests=report.host.requests,
        host_hits=report.host.hits,
    )


def use_all_cores(run: RunFile) -> None:
    """One process embeds and evaluates: it may use what the run's workers shared."""
    torch.set_num_threads(run.training.num_compute_threads or os.cpu_count() or 1)


def embedded_store(run: RunFile, manifest: EmbeddingManifest) -> Store:
    """The store that embeddings are of, as it was; BadInput when it is another by now."""
    return open_same_store(
        manifest.store,
        generation=manifest.generation,
        generation_xxh64=manifest.generation_xxh64,
        what="an embedding",
        block_cache=block_cache_of(run.tiers),
    )


def evaluate_run(run: RunFile, *, embeddings: str | None, progress: Progress) -> EvaluationReport:
    """Score a run's embeddings (or those in `embeddings`) on the store they are of, beside the baselines."""
    settings = settings_of(run)
    use_all_cores(run)
    folder = embeddings or run_place(run).full(EMBEDDINGS)
    store = embedded_store(run, read_manifest(Place(folder)))
    if "link" in run.evaluation.tasks:
        held_out_table(run.evaluation.link)
        if run.evaluation.link.in_store == "refuse":
            refuse_held_out_in_training(run, settings, embedded=store, progress=progress)
    schema = GraphSchema.from_store(store)
    return evaluate(
        store,
        embeddings=folder,
        # the weights that training began with: the same run file and seed
        random_encoder=lambda: build_model(settings, schema, group=Group()).encoder,
        config=run.evaluation,
        seed=settings.run.seed,
        work=run_place(run).child(WORK),
        pictures=run_place(run).child(PICTURES),
        cache_bytes=layerwise_cache_bytes(run.tiers),
        embedding=run.embedding,
        device=pick_device(run, local_rank=0),
        progress=progress,
    )


def refuse_held_out_in_training(run: RunFile, settings: RunFile, *, embedded: Store, progress: Progress) -> None:
    """BadInput when held-out edges are in the store that the run was trained on, where `embedded` is another.

    Where the run has no checkpoint, the store of its run file as it is now takes that one's place.
    """
    whole, _ = newest_whole(run_place(run))
    cache = block_cache_of(run.tiers)
    if whole is None:
        trained_on = Store.open(settings.data.store, block_cache=cache)
    else:
        trained_on = store_of(settings, parse_checkpoint(run_place(run), whole).state, block_cache=cache)
    if trained_on.generation_xxh64 != embedded.generation_xxh64:
        refuse_trained_on(trained_on, config=run.evaluation.link, progress=progress)
