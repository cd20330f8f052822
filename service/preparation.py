"""What a run trains with, made from its run file; whatever can be wrong with it shows here, before a run is begun.

run file, store, another run's checkpoint -> model, order of seeds, number of steps
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sampling.seeds import SeedOrder
from service.branching import branch_checkpoint, load_weights
from service.checkpoint import Checkpoint, TrainingState
from service.global_steps import GlobalSteps
from service.group import Group
from service.learned_memory import check_learned_rows
from service.model import Model, build_model
from service.objectives import Objective
from service.run_file import RunFile
from service.run_folder import open_same_store
from service.sampling_section import check_sampling
from service.schema import GraphSchema
from service.seed_edges import check_seed_edges, has_seed_edges, seed_types_of
from service.seed_nodes import seed_order
from service.tiers import block_cache_of
from storage.block_cache import BlockCache
from storage.errors import BadInput
from storage.store import Store


@dataclass(eq=False)
class Preparation:
    """Everything but the data itself."""

    store: Store
    model: Model
    """with its initial weights, on the CPU"""
    order: SeedOrder
    steps: GlobalSteps
    total_steps: int
    origin: Checkpoint | None = None
    """of the run that a new run continues from; the model has its weights"""

    def take_origin(self) -> Checkpoint | None:
        """`origin`, and let go of it: its tensors are as large as model and optimiser."""
        origin, self.origin = self.origin, None
        return origin

    @property
    def total_batches(self) -> int:
        """Batches of all steps."""
        return self.steps.first_batch(self.total_steps)


def prepare(run: RunFile, *, group: Group, state: TrainingState | None) -> Preparation:
    """Open the store and build the model and the order of seeds; nothing is written.

    Args:
        group: the ranks that train together.
        state: of the checkpoint to go on from, which says what generation of the store; None for a new run.

    Raises BadInput for a store that cannot be opened or was replaced, and for settings that cannot work on it.
    """
    cache = block_cache_of(run.tiers)
    store = Store.open(run.data.store, block_cache=cache) if state is None else store_of(run, state, block_cache=cache)
    schema = GraphSchema.from_store(store)
    check_learned_rows(run, schema)
    model = build_model(run, schema, group=group)
    check_hops(run, model)
    check_seed_edges(run, store)
    check_sampling(run.sampling, store, seed_types=None if has_seed_edges(run) else run.data.seed_types)
    check_seed_types(model, seed_types_of(run, store))
    order = seed_order(store, run)
    steps = GlobalSteps(order.steps_per_epoch, run.training.accumulate)
    total_steps = run.training.epochs * steps.per_epoch
    origin = None
    if state is None and run.run.continue_from is not None:
        origin = branch_checkpoint(run)
        load_weights(model, origin, place=run.run.continue_from)
    return Preparation(
        store=store,
        model=model,
        order=order,
        steps=steps,
        total_steps=min(total_steps, run.training.max_steps or total_steps),
        origin=origin,
    )


def store_of(run: RunFile, state: TrainingState, *, block_cache: BlockCache | None) -> Store:
    """The run's store at the generation that a checkpoint was trained on; BadInput when it was replaced."""
    return open_same_store(
        run.data.store,
        generation=state.generation,
        generation_xxh64=state.generation_xxh64,
        what="a checkpoint",
        block_cache=block_cache,
    )


def pick_device(run: RunFile, *, local_rank: int) -> torch.device:
    """The device of a rank: the run file's, or a GPU where there is one; BadInput for a GPU that is not there.

    Args:
        local_rank: number among the ranks of this machine, which share its GPUs.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if run.training.device == "cuda" and num_gpus == 0:
        raise BadInput(
            "training.device=cuda",
            "no GPU that torch can use",
            rule="the device exists on every worker",
            remedy="set training.device=auto, or install a torch build for the GPU",
        )
    return torch.device("cpu") if run.training.device == "cpu" else device_of(local_rank, num_gpus=num_gpus)


def device_of(local_rank: int, *, num_gpus: int) -> torch.device:
    """The GPU of a rank of a machine with `num_gpus`, in turn; the CPU where there is none."""
    return torch.device("cpu") if num_gpus == 0 else torch.device("cuda", local_rank % num_gpus)


def check_seed_types(model: Model, seed_types: Sequence[str]) -> None:
    """Raise BadInput where an objective of `model`, also one inside another, cannot learn from these seeds."""
    for module in model.modules():
        if isinstance(module, Objective):
            module.check_seed_types(seed_types)


def check_hops(run: RunFile, model: Model) -> None:
    """A batch needs one hop per encoder layer and one per hop that the objective reaches beyond them."""
    needed = model.encoder.num_layers + model.objective.reach
    if len(run.sampling.fanouts) != needed:
        raise BadInput(
            f"sampling.fanouts={list(run.sampling.fanouts)}",
            f"{len(run.sampling.fanouts)} hops",
            rule=f"{model.encoder.num_layers} encoder layers and reach {model.objective.reach} of objective "
            f"{run.objective.name} need {needed}",
            remedy=f"list {needed} fan-outs, from the seeds outward",
        )
