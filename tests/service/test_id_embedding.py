"""Rows learned by id: against dense tables and the formula of their optimiser, and what may not happen to them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from sampling.batch import MiniBatch
from service.encoders import Encoder
from service.encoders.id_embedding import initial_rows
from service.errors import TrainingFailed
from service.group import Group
from service.model import Model, build_model
from service.noise import Noise
from service.objectives import LossSum
from service.run_file import RunFile, parse_run_text
from service.schema import GraphSchema
from service.step import Gradient, build_optimizer, find_gradient, take_step
from storage.errors import BadInput
from tests.service.batches import SmallGraph, featureless, heterogeneous, homogeneous, make_batch

GRAPH = featureless()
USER, ITEM, TAG = 0, 1, 2
TEXT = """
run: {name: r, seed: 4}
data: {store: s}
encoder: {name: sage, hidden_dim: 8, id_embedding_dim: 5}
objective:
  {name: bgrl, view_1: {edge_drop: 0, feature_drop: 0}, view_2: {edge_drop: 0, feature_drop: 0}, predictor_dim: 6}
training: {learning_rate: 0.01, embedding_learning_rate: 0.3}
"""
"""a loss that is a sum over seeds, without anything random"""


def run_of(*overrides: str) -> RunFile:
    return parse_run_text(TEXT, place="run.yaml", overrides=overrides)


def build(run: RunFile, graph: SmallGraph = GRAPH) -> Model:
    """In float64, learned rows too."""
    model = build_model(run, graph.schema, group=Group()).double()
    assert model.encoder.ids is not None
    for tables in (model.encoder.ids.rows, model.encoder.ids.squares):
        tables.update({number: table.double() for number, table in tables.items()})
    return model


def rows_of(model: Model) -> dict[int, Tensor]:
    assert model.encoder.ids is not None
    return {number: table.clone() for number, table in model.encoder.ids.rows.items()}


def batches_of(*seeds: Sequence[int], fanout: int | None = 1) -> list[MiniBatch]:
    """Batches of the nodes of these numbers, over all types."""
    nodes = GRAPH.all_seeds()
    return [
        replace(make_batch(GRAPH, [nodes[number] for number in some], num_hops=2, fanout=fanout), step=step)
        for step, some in enumerate(seeds)
    ]


def step(run: RunFile, model: Model, optimizer: torch.optim.Optimizer, batches: list[MiniBatch]) -> Gradient:
    return take_step(
        run, batches, step=1, num_batches=len(batches), forward=model, model=model, optimizer=optimizer, group=Group()
    )


# The oracle: tables as parameters of torch, read whole, and the formula over every row of them.


class DenseTraining:
    def __init__(self, run: RunFile) -> None:
        self.run = run
        self.model = build(run)
        self.tables = {number: nn.Parameter(rows) for number, rows in rows_of(self.model).items()}
        self.squares = {number: torch.zeros(len(rows), dtype=torch.float64) for number, rows in self.tables.items()}
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.model.parameters() if weight.requires_grad],
            lr=run.training.learning_rate,
            weight_decay=run.training.weight_decay,
        )

    def loss(self, batch: MiniBatch) -> LossSum:
        learned: list[Tensor | None] = [None] * 3
        for number, table in self.tables.items():
            learned[number] = embedding(batch.node_id[batch.node_type == number], table)
        out: LossSum = self.model(replace(batch, learned=tuple(learned)), Noise(0))
        return out

    def step(self, batches: list[MiniBatch], *, share: float) -> tuple[float, float]:
        """Loss and gradient norm of a step at `share` of both peak rates."""
        weights = [*self.model.parameters(), *self.tables.values()]
        for weight in weights:
            weight.grad = None
        found = [self.loss(batch) for batch in batches]
        loss = torch.stack([out.loss_sum for out in found]).sum() / torch.stack([out.count for out in found]).sum()
        loss.backward()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm = torch.cat([gradient.reshape(-1) for gradient in gradients]).norm()
        if self.run.training.clip_norm is not None:
            for gradient in gradients:
                gradient.mul_(min(1.0, self.run.training.clip_norm / (float(norm) + 1e-6)))
        self.optimizer.param_groups[0]["lr"] = share * self.run.training.learning_rate
        self.optimizer.step()
        for number, table in self.tables.items():
            assert table.grad is not None
            self.squares[number] += table.grad.square().mean(1)
            rate = share * self.run.training.embedding_learning_rate
            table.data -= rate * table.grad / (self.squares[number].sqrt() + 1e-10)[:, None]
        return float(loss.detach()), float(norm)


@pytest.mark.parametrize("encoder", ["sage", "gat", "mlp"])
@pytest.mark.parametrize(
    ("overrides", "batches_a_step"), [((), 1), (("training.accumulate=2", "training.clip_norm=0.02"), 2)]
)
def test_sparse_steps_are_those_of_dense_tables(encoder: str, overrides: tuple[str, ...], batches_a_step: int) -> None:
    run = run_of(f"encoder.name={encoder}", *overrides)
    oracle = DenseTraining(run)
    model = build(run)
    optimizer = build_optimizer(run, model)
    seeds = [(0, 3, 20), (3, 33, 17), (5, 20, 21, 0), (30, 31)]
    for number in range(3):
        share = 1.0 if number == 0 else 0.5 / number
        batches = [batch for part in range(batches_a_step) for batch in batches_of(seeds[number + part])]
        optimizer.param_groups[0]["lr"] = share * run.training.learning_rate
        found = step(run, model, optimizer, batches)
        assert (found.loss, found.norm) == pytest.approx(oracle.step(batches, share=share), rel=1e-11)
        assert model.encoder.ids is not None
        for kind in (USER, ITEM):
            assert torch.allclose(model.encoder.ids.rows[kind], oracle.tables[kind], rtol=0, atol=1e-9)
            assert torch.allclose(model.encoder.ids.squares[kind], oracle.squares[kind], rtol=1e-8, atol=1e-20)


def test_rows_that_no_seed_reads_keep_their_bytes() -> None:
    run = run_of()
    model = build_model(run, GRAPH.schema, group=Group())
    before = rows_of(model)
    batches = batches_of((0, 20))
    single = [
        replace(batch, features=tuple(t if t is None else t.float() for t in batch.features)) for batch in batches
    ]
    step(run, model, build_optimizer(run, model), single)
    assert model.encoder.ids is not None
    num_changed = 0
    for kind, rows in model.encoder.ids.rows.items():
        read = torch.zeros(len(rows), dtype=torch.bool)
        read[batches[0].node_id[batches[0].node_type == kind]] = True
        changed = (rows != before[kind]).any(1)
        assert not changed[~read].any()
        assert rows[~read].numpy().tobytes() == before[kind][~read].numpy().tobytes()
        assert torch.equal(model.encoder.ids.squares[kind] != 0, changed)
        num_changed += int(changed.sum())
        assert rows.dtype == torch.float32
    assert num_changed >= 2


@pytest.mark.parametrize("cuts", [((0, 3), (20, 33, 5)), ((0,), (3, 20), (33, 5)), ((), (0, 3, 20, 33, 5))])
def test_batches_of_any_sizes_have_the_row_gradients_of_their_union(cuts: tuple[tuple[int, ...], ...]) -> None:
    run, model = run_of(), build(run_of())

    def gradients(batches: list[MiniBatch]) -> Gradient:
        return find_gradient(run, batches, num_batches=len(batches), forward=model, model=model, group=Group())

    whole = gradients(batches_of((0, 3, 20, 33, 5), fanout=None))
    parts = gradients(batches_of(*cuts, fanout=None))
    assert parts.norm == pytest.approx(whole.norm, rel=1e-11)
    for one, other in zip(parts.touched, whole.touched, strict=True):
        assert one.node_type == other.node_type
        assert torch.equal(one.ids, other.ids)
        assert torch.allclose(one.gradient, other.gradient, rtol=0, atol=1e-12)


def test_the_gradient_norm_is_of_weights_and_rows_and_both_are_clipped() -> None:
    run = run_of("training.clip_norm=0.01")
    model = build(run)
    batches = batches_of((0, 3, 20))
    found = find_gradient(run, batches, num_batches=1, forward=model, model=model, group=Group())
    parts = [weight.grad for weight in model.parameters() if weight.grad is not None]
    rows = [one.gradient for one in found.touched]
    assert torch.cat([part.reshape(-1) for part in rows]).norm() > 0
    clipped = torch.cat([part.reshape(-1) for part in (*parts, *rows)])
    assert found.norm > 0.02
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_row_gradient_that_is_no_number_stops_the_run_before_anything_changes() -> None:
    run = run_of()
    model = build(run)
    before = rows_of(model)

    def forward(batch: MiniBatch, noise: Noise) -> LossSum:
        out: LossSum = model(batch, noise)
        rows = batch.learned[USER]
        assert rows is not None
        return replace(out, loss_sum=out.loss_sum + (rows - rows.detach()).abs().sum().sqrt())  # finite, not its slope

    with pytest.raises(TrainingFailed, match=r"gradient norm is (inf|nan)"):
        take_step(
            run, batches_of((0, 3, 20)), step=1, forward=forward, model=model,
            optimizer=build_optimizer(run, model), group=Group(),
        )  # fmt: skip
    assert all(torch.equal(rows, before[kind]) for kind, rows in rows_of(model).items())


def test_what_the_encoder_reads_is_log_degrees_and_the_learned_row() -> None:
    model = build(run_of())
    (batch,) = batches_of((0, 3, 20, 33, 37), fanout=None)
    encoder = model.encoder
    batch = encoder.look_up(batch)
    assert encoder.look_up(batch) is batch
    h = encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree, batch.learned)
    for kind in (USER, ITEM):
        of_kind = batch.node_type == kind
        degrees = torch.cat([batch.in_degree, batch.out_degree])[:, of_kind].T.double()
        read = torch.cat([torch.log(1 + degrees), rows_of(model)[kind][batch.node_id[of_kind]]], dim=1)
        project = encoder.projections[kind]
        assert isinstance(project, nn.Linear)
        assert torch.allclose(h[of_kind], read @ project.weight.T + project.bias, atol=1e-12)


def test_a_target_network_reads_the_same_rows_and_has_none_of_its_own() -> None:
    model = build(run_of())
    assert isinstance(model.objective.target, Encoder)
    assert model.objective.target.ids is None
    assert [name for name in model.state_dict() if "rows" in name] == ["encoder.ids.user.rows", "encoder.ids.item.rows"]
    assert model.num_trained == sum(weight.numel() for weight in model.parameters()) + (18 + 14) * 5


def test_initial_rows_are_keyed_by_seed_type_and_id() -> None:
    rows = initial_rows(0, 5000, dim=16, seed=3)
    assert torch.equal(initial_rows(0, 70_000, dim=16, seed=3)[:5000], rows)
    others = [initial_rows(1, 5000, dim=16, seed=3), initial_rows(0, 5000, dim=16, seed=4)]
    for other in others:
        assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 0.02
    assert float(rows.std()) == pytest.approx(0.25, rel=0.02)
    assert abs(float(rows.mean())) < 0.005
    assert float(rows.square().sum(1).mean()) == pytest.approx(1.0, rel=0.02)


def test_named_types_alone_have_rows() -> None:
    model = build_model(run_of("encoder.id_embedding_types=[item]"), GRAPH.schema, group=Group())
    assert model.encoder.ids is not None
    assert list(model.encoder.ids.rows) == [ITEM]
    assert [layer.in_features for layer in model.encoder.projections] == [8, 13, 4]


@pytest.mark.parametrize(
    ("overrides", "graph", "message"),
    [
        (("encoder.id_embedding_types=[tag]",), GRAPH, r"node type tag has features.*choose among user, item"),
        (("encoder.id_embedding_types=[book]",), GRAPH, r"node type book is unknown"),
        ((), homogeneous(), r"id_embedding_dim=5: features on every node type \(node\)"),
    ],
)
def test_rows_of_types_that_cannot_have_them_are_refused(
    overrides: tuple[str, ...], graph: SmallGraph, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        build_model(run_of(*overrides), graph.schema, group=Group())


def test_types_without_a_width_are_refused() -> None:
    with pytest.raises(BadInput, match=r"id_embedding_types=.*their rows need id_embedding_dim"):
        run_of("encoder.id_embedding_dim=null", "encoder.id_embedding_types=[user]")


def test_gradients_that_are_balanced_by_task_have_no_rows() -> None:
    text = TEXT.partition("objective:")[0] + "objective: {name: multitask, balance: mgda, tasks: [{name: decorr}, "
    run = parse_run_text(text + "{name: pretext, tasks: [degree]}]}", place="run.yaml")
    with pytest.raises(BadInput, match=r"balance=mgda: encoder\.id_embedding_dim=5.*uncertainty or fixed"):
        build_model(run, heterogeneous().schema, group=Group())


def grown(schema: GraphSchema, counts: dict[int, int], numbering: dict[int, tuple[str, ...]]) -> GraphSchema:
    kinds = tuple(
        replace(kind, num_nodes=counts.get(number, kind.num_nodes), numbering=numbering.get(number, ("0a",)))
        for number, kind in enumerate(schema.node_types)
    )
    return replace(schema, node_types=kinds)


def test_rows_go_on_where_a_store_has_grown_and_are_refused_where_its_nodes_have_other_numbers() -> None:
    def build_on(schema: GraphSchema, *overrides: str) -> Any:
        return build_model(run_of(*overrides), schema, group=Group()).encoder.ids

    old = grown(GRAPH.schema, {}, {})
    trained = build_on(old)
    for tables in (trained.rows, trained.squares):
        for table in tables.values():
            table.add_(1.0)
    kept = trained.state_dict()
    larger = grown(GRAPH.schema, {USER: 25}, {USER: ("0a", "f" * 16)})
    fresh, ids = build_on(larger, "run.seed=5"), build_on(larger, "run.seed=5")
    ids.load_state_dict(kept)
    assert torch.equal(ids.rows[USER][:18], trained.rows[USER])
    assert torch.equal(ids.rows[USER][18:], fresh.rows[USER][18:])
    assert ids.squares[USER].tolist() == [1.0] * 18 + [0.0] * 7
    for schema in (
        grown(GRAPH.schema, {USER: 25}, {USER: ("0b", "0c")}),  # compacted, or another store
        grown(GRAPH.schema, {USER: 17}, {USER: ("0a",)}),
    ):
        with pytest.raises(BadInput, match=r"learned rows of 18 nodes of type user.*under other numbers"):
            build_on(schema).load_state_dict(kept)
    with pytest.raises(BadInput, match="under other numbers"):
        build_on(old).load_state_dict(ids.state_dict())  # of a later generation
    with pytest.raises(BadInput, match=r"id_embedding_dim=6: no learned rows of that width for node type user"):
        build_on(old, "encoder.id_embedding_dim=6").load_state_dict(kept)
    trained.refuse_other_nodes(old, place="there")
    with pytest.raises(BadInput, match="there: learned rows of 18 nodes of type user, and 25"):
        trained.refuse_other_nodes(larger, place="there")
