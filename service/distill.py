"""`hopstream distill`: an MLP that reads a node's own features learns what the encoder made of its neighbourhood.

    <run>/distilled/<name>/student.safetensors   weights (service.distill_student)
    <run>/distilled/<name>/student.json          how to load and compute them
    <run>/distilled/<name>/embeddings/           the student's embeddings, as `embed` writes them; or
    <run>/distilled/<name>/predictions.parquet   id, prediction, probabilities, as `finetune` writes them
    <run>/distilled/<name>/report.json           written last: with it the result is complete
    <run>/distilled/<name>/state.json            the figures of every epoch, and what they belong to

The same command again goes on where a killed one stood, and ends with the same bytes.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as format_tensors

from service.distill_rows import DistillRows, held_out_places, open_rows
from service.distill_scores import Scored, class_scores, probe_scores, probed_labels
from service.distill_student import DESCRIPTION, WEIGHTS, Student, StudentLoss, describe, fold, make_student
from service.distill_teacher import Teacher, open_teacher
from service.distill_training import EVALUATION_ROWS, distill_rounds
from service.embedding_claim import claimed
from service.embedding_files import STAGING, EmbeddedType, PartWriter, commit
from service.finetune import refuse_workers
from service.finetune_predictions import prediction_file
from service.finetune_rounds import Round, best_round, drop_tensors, has_stopped, read_rounds
from service.lease import Lease
from service.preparation import pick_device
from service.results import EMBEDDINGS, use_all_cores
from service.run_file import RunFile
from service.run_folder import run_place
from storage.place import Place
from storage.progress import Progress

FOLDER = "distilled"
REPORT = "report.json"
WORK = "work"
IDS_PER_BATCH = 65536


@dataclass(frozen=True)
class DistillReport:
    """What distillation found."""

    run: str
    step: int
    """training steps done by the teacher's encoder"""
    name: str
    out: str
    """folder of the result"""
    node_type: str
    target: str
    loss: str
    rows: int
    """nodes learned from"""
    held_out: int
    """nodes that were not"""
    epochs: int
    best_epoch: int
    stopped_early: bool
    held_out_loss: float
    """of the best weights; of mse the share of the teacher's variance that is left"""
    held_out_agreement: float | None
    """percent of the held-out nodes whose class is the teacher's; None for embeddings"""
    num_parameters: int
    scored: Scored | None
    """accuracy of teacher and student; None where the node type has no labels"""


def distill(run: RunFile, *, progress: Progress) -> DistillReport:
    """Distil by section `distill`; a complete result is returned as it is.

    Raises BadInput when there is no teacher, for several workers, and when the result of that name began with other
    settings or another teacher.
    """
    refuse_workers(run, what="distillation")
    teacher = open_teacher(run, progress=progress)
    place = run_place(run).child(FOLDER).child(run.distill.name)
    binding = run.distill.binding | teacher.source
    use_all_cores(run)
    with Lease(place) as lease, ExitStack() as opened:
        read_rounds(place, binding=binding, section="distill")  # refuses a result of other settings
        if place.exists(REPORT):
            drop_tensors(place)  # these and the work folder a kill right behind the report left
            place.remove(WORK)
            return read_report(place)
        labelled = probed_labels(run, teacher, progress=progress)
        work = place.child(WORK)
        opened.callback(place.remove, WORK)
        rows = open_rows(teacher, work=work, opened=opened, progress=progress)
        device = pick_device(run, local_rank=0)
        outputs = rows.outputs if teacher.nodes is None else None
        student = make_student(rows.features.dim, teacher.dim, run.distill)
        loss = StudentLoss(student, run.distill, inputs=rows.inputs, outputs=outputs).to(device)
        rounds, best = distill_rounds(
            loss,
            rows,
            section=run.distill,
            place=place,
            binding=binding,
            check=lease.check,
            device=device,
            progress=progress,
        )
        student.load_state_dict(best)
        fold(student, inputs=rows.inputs, outputs=outputs)
        weights = {key: value.detach().cpu().contiguous() for key, value in student.state_dict().items()}
        lease.check()
        place.write_bytes(WEIGHTS, format_tensors(weights))
        place.write_bytes(DESCRIPTION, json.dumps(describe(student, teacher), indent=1).encode())
        if teacher.nodes is None:
            write_embeddings(run, teacher, student_rows(student, rows, device=device, progress=progress), place=place)
            scored = None
            if labelled is not None:
                folder = place.child(EMBEDDINGS)
                scored = probe_scores(run, teacher, labelled, place=folder, rows=rows, progress=progress)
        else:
            predicted = write_probabilities(
                teacher, student_rows(student, rows, device=device, progress=progress), place=place
            )
            scored = class_scores(teacher, predicted, ids=rows.ids)
        report = make_report(run, teacher, rows, rounds, place=place, student=student, scored=scored)
        lease.check()
        place.write_bytes(REPORT, json.dumps(asdict(report), indent=1).encode())
        drop_tensors(place)
    return report


def student_rows(
    student: Student, rows: DistillRows, *, device: torch.device, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """What the student makes of every node's features [n, D], in the store's order."""
    progress.stage("student, all nodes", total=rows.ids.shape[0], unit="nodes")
    for start in range(0, rows.ids.shape[0], EVALUATION_ROWS):
        places = np.arange(start, min(start + EVALUATION_ROWS, rows.ids.shape[0]), dtype=np.int64)
        with torch.no_grad():
            found = student(torch.from_numpy(rows.read_inputs(places)).to(device)).cpu().numpy()
        yield found
        progress.advance(places.shape[0])


def write_embeddings(run: RunFile, teacher: Teacher, found: Iterator[NDArray[np.float32]], *, place: Place) -> None:
    """The student's embeddings of the node type, which `evaluate` reads as it reads the teacher's."""
    assert teacher.manifest is not None
    out, store = place.child(EMBEDDINGS), teacher.store
    kind = store.node_type(teacher.node_type)
    with claimed(out):
        with PartWriter(
            out.child(STAGING),
            node_type=kind.name,
            ids=iter(store.id_batches(kind.name, rows_per_batch=IDS_PER_BATCH)),
            dim=teacher.dim,
        ) as writer:
            for rows_ND in found:
                writer.write(rows_ND)
        written = EmbeddedType(
            name=kind.name, num_nodes=kind.num_live, id_type=kind.id_type, parts=tuple(writer.parts)
        )  # fmt: skip
        encoder = {"name": "student", "num_layers": run.distill.num_layers, "hidden_dim": run.distill.hidden_dim}
        commit(out, teacher.manifest.model_copy(update={"encoder": encoder, "node_types": (written,)}))


def write_probabilities(teacher: Teacher, found: Iterator[NDArray[np.float32]], *, place: Place) -> NDArray[np.int64]:
    """The student's predictions of the node type; returns the number of the class of every node in row order."""
    assert teacher.nodes is not None
    predicted = []
    with prediction_file(
        place, store=teacher.store, node_type=teacher.node_type, classes=teacher.nodes.classes
    ) as writer:
        for logits_NC in found:
            probabilities_NC = torch.from_numpy(logits_NC).softmax(1).numpy()
            predicted.append(probabilities_NC.argmax(1).astype(np.int64))
            writer.write(probabilities_NC)
    return np.concatenate(predicted)


def make_report(
    run: RunFile,
    teacher: Teacher,
    rows: DistillRows,
    rounds: list[Round],
    *,
    place: Place,
    student: Student,
    scored: Scored | None,
) -> DistillReport:
    """What there is to say of a finished student."""
    section, best = run.distill, best_round(rounds)
    num_held_out = held_out_places(rows.ids.shape[0], section).shape[0]
    return DistillReport(
        run=run.run.name,
        step=teacher.step,
        name=section.name,
        out=place.url,
        node_type=teacher.node_type,
        target=section.target,
        loss=section.loss if teacher.nodes is None else "cross-entropy",
        rows=rows.ids.shape[0] - num_held_out,
        held_out=num_held_out,
        epochs=len(rounds),
        best_epoch=best + 1,
        stopped_early=has_stopped(rounds, patience=section.patience),
        held_out_loss=rounds[best].val_loss,
        held_out_agreement=rounds[best].val_accuracy,
        num_parameters=sum(parameter.numel() for parameter in student.parameters()),
        scored=scored,
    )


def read_report(place: Place) -> DistillReport:
    """The report of a complete result."""
    fields = json.loads(place.read_bytes(REPORT))
    scored = fields["scored"]
    return DistillReport(**{**fields, "scored": None if scored is None else Scored(**scored)})
