"""`hopstream finetune`: train on labels from a run's encoder, test with full neighbourhoods, write predictions.

    <run>/finetuned/<name>/model.safetensors      best weights, encoder.* and head.*
    <run>/finetuned/<name>/predictions.parquet    id, prediction, probabilities
    <run>/finetuned/<name>/report.json            written last: with it the result is complete
    <run>/finetuned/<name>/state.json             the figures of every round, and what they belong to
    <run>/finetuned/<name>/scratch/               the same from the weights that the run began with, where asked for

The same command again goes on where a killed one stood, and ends with the same bytes.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from safetensors.torch import save as format_tensors

from service.checkpoint import Checkpoint
from service.finetune_model import Classifier, build_classifier
from service.finetune_nodes import LabelledNodes, read_nodes, round_order
from service.finetune_predictions import Scores, scores_of, write_predictions
from service.finetune_rounds import best_round, drop_tensors, has_stopped, read_rounds
from service.finetune_training import Finetuned, batch_settings, finetune_rounds
from service.global_steps import GlobalSteps
from service.group import Group
from service.lease import Lease
from service.model import build_model
from service.preparation import Preparation, pick_device, store_of
from service.results import newest_checkpoint, settings_of, use_all_cores
from service.run_file import RunFile
from service.run_folder import run_place
from service.sampling_section import check_sampling
from service.schema import GraphSchema
from service.tiers import block_cache_of
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress
from storage.store import Store

FOLDER = "finetuned"
SCRATCH = "scratch"
MODEL = "model.safetensors"
REPORT = "report.json"

Start = Literal["pretrained", "scratch"]


@dataclass(frozen=True)
class StartReport:
    """What came of one start."""

    start: Start
    out: str
    """its folder"""
    epochs: int
    """passes over the training nodes"""
    best_epoch: int
    """after how many of them the best weights were reached"""
    stopped_early: bool
    val_accuracy: float
    """percent, of the best weights over sampled neighbourhoods, as in training"""
    test_accuracy: float
    """percent, over full neighbourhoods"""
    macro_f1: float
    """percent, of the same nodes"""
    num_trained: int
    """parameters that were trained"""


@dataclass(frozen=True)
class FinetuneReport:
    """What finetuning found."""

    run: str
    step: int
    """training steps done by the pretrained encoder"""
    name: str
    node_type: str
    frozen: bool
    classes: list[int]
    """labels, in the order of predictions' probabilities"""
    labels_per_class: int | None
    train_rows: int
    val_rows: int
    test_rows: int
    majority_accuracy: float
    """percent of the test nodes that have the most frequent class of the training nodes"""
    starts: list[StartReport]


def finetune(run: RunFile, *, from_scratch: bool, progress: Progress) -> FinetuneReport:
    """Finetune the run's newest checkpoint by section `finetune`; a complete result is returned as it is.

    Args:
        from_scratch: do the same from fresh weights too.

    Raises BadInput for a run without a checkpoint or with other settings than it was trained with, for labels that
    cannot be learned from, for several workers, and when the result of that name began with other settings.
    """
    refuse_workers(run, what="finetuning")
    if from_scratch and run.encoder.id_embedding_dim is not None:
        raise BadInput(
            f"encoder.id_embedding_dim={run.encoder.id_embedding_dim}",
            "--from-scratch",
            rule="finetuning reads rows learned by id as pretraining left them, and from scratch there are none",
            remedy="leave --from-scratch out",
        )
    checkpoint = newest_checkpoint(run)
    settings_of(run)
    store = store_of(run, checkpoint.state, block_cache=block_cache_of(run.tiers))
    progress.stage("read labels", total=1, unit="stores")
    nodes = read_nodes(store, run.finetune, split_seed=run.run.seed)
    progress.advance(1)
    use_all_cores(run)
    starts: list[Start] = ["pretrained", "scratch"] if from_scratch else ["pretrained"]
    with Lease(start_place(run, "pretrained")) as lease:
        reports = []
        for start in starts:
            work = Finetuning(run, start, checkpoint=checkpoint, store=store, nodes=nodes)
            reports.append(work.finished() or work.finish(check=lease.check, progress=progress))
            drop_tensors(work.place)  # also those that a kill right behind the report left
    return replace(reports[0], starts=[found for report in reports for found in report.starts])


class Finetuning:
    """One start of a finetuning.

    Args:
        checkpoint: of the run, on `store`.
        nodes: its nodes with labels.
    """

    def __init__(
        self, run: RunFile, start: Start, *, checkpoint: Checkpoint, store: Store, nodes: LabelledNodes
    ) -> None:
        self.run = run
        self.start: Start = start
        self.nodes = nodes
        self.place = start_place(run, start)
        self._checkpoint = checkpoint
        self._store = store
        self._binding = run.finetune.binding | {
            "start": start,
            "step": checkpoint.state.step,
            "generation_xxh64": store.generation_xxh64,
        }

    def finished(self) -> FinetuneReport | None:
        """The report of a complete result; None where work is left. BadInput when it began with other settings."""
        read_rounds(self.place, binding=self._binding, section="finetune")
        try:
            fields = json.loads(self.place.read_bytes(REPORT))
        except FileNotFoundError:
            return None
        return FinetuneReport(**{**fields, "starts": [StartReport(**found) for found in fields["starts"]]})

    def finish(self, *, check: Callable[[], None], progress: Progress) -> FinetuneReport:
        """Train, predict and test, whatever of it is not done yet; `check` as of `finetune_rounds`."""
        run, nodes, section = self.run, self.nodes, self.run.finetune
        device = pick_device(run, local_rank=0)
        model = build_model(run, GraphSchema.from_store(self._store), group=Group())
        if self.start == "pretrained":
            model.load_state_dict(self._checkpoint.model)
        classifier = build_classifier(run, model.encoder, num_classes=nodes.classes.shape[0]).to(device)
        settings = batch_settings(run, num_layers=model.encoder.num_layers)
        check_sampling(settings.sampling, self._store, seed_types=(nodes.kind.name,))
        order = round_order(self._store, nodes, section, seed=settings.run.seed)
        steps = GlobalSteps(order.steps_per_epoch)
        trained = finetune_rounds(
            settings,
            classifier,
            nodes=nodes,
            prepared=Preparation(self._store, model, order, steps, total_steps=section.num_rounds * steps.per_epoch),
            place=self.place,
            binding=self._binding,
            check=check,
            device=device,
            name=f"finetune, {self.start}",
            progress=progress,
        )
        classifier.load_state_dict(trained.best)
        check()
        self.place.write_bytes(MODEL, format_tensors(trained.best))
        predicted = write_predictions(
            run, classifier, store=self._store, nodes=nodes, place=self.place, device=device, progress=progress
        )
        report = self._report(trained, classifier, test=scores_of(predicted, nodes=nodes, ids=nodes.test))
        check()
        self.place.write_bytes(REPORT, json.dumps(asdict(report), indent=1).encode())
        return report

    def _report(self, trained: Finetuned, classifier: Classifier, *, test: Scores) -> FinetuneReport:
        nodes, section = self.nodes, self.run.finetune
        best = best_round(trained.rounds)
        found = StartReport(
            start=self.start,
            out=self.place.url,
            epochs=len(trained.rounds) * section.validate_every,
            best_epoch=(best + 1) * section.validate_every,
            stopped_early=has_stopped(trained.rounds, patience=section.patience),
            val_accuracy=trained.rounds[best].val_accuracy or 0.0,
            test_accuracy=test.accuracy,
            macro_f1=test.macro_f1,
            num_trained=sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad),
        )
        return FinetuneReport(
            run=self.run.run.name,
            step=self._checkpoint.state.step,
            name=section.name,
            node_type=nodes.kind.name,
            frozen=section.freeze,
            classes=nodes.classes.tolist(),
            labels_per_class=section.labels_per_class,
            train_rows=nodes.train.shape[0],
            val_rows=nodes.val.shape[0],
            test_rows=nodes.test.shape[0],
            majority_accuracy=nodes.majority_accuracy,
            starts=[found],
        )


def start_place(run: RunFile, start: Start) -> Place:
    """The folder of one start's result."""
    place = run_place(run).child(FOLDER).child(run.finetune.name)
    return place if start == "pretrained" else place.child(SCRATCH)


def refuse_workers(run: RunFile, *, what: str) -> None:
    """BadInput where the run file asks for several workers, or for sampler actors, which `what` has none of."""
    if run.workers.count > 1 or run.workers.samplers:
        raise BadInput(
            f"workers.count={run.workers.count}, workers.samplers={run.workers.samplers}",
            "more than this process",
            rule=f"{what} is done by one process",
            remedy="add workers.count=1 workers.samplers=0; checkpoints are the same for any number of workers",
        )
