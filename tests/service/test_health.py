"""Health of representations: each figure beside its formula, and what warns."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from service.group import Group
from service.health import Health, SeedStates, collapse_warning, effective_rank, linked_distances, spread, uniformity
from service.model import Model, build_model
from service.noise import Noise
from service.pretraining import pretrain
from service.run_file import load_run_file, parse_run_text
from service.run_status import read_status
from storage.place import Place
from storage.progress import NoProgress
from tests.data import small_run, small_store
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch


def drawn(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_spread_is_one_for_independent_columns_and_zero_for_equal_rows() -> None:
    mean, least = spread(drawn(1000, 16))
    assert mean == pytest.approx(1.0, abs=0.05)
    assert least is not None
    assert mean is not None
    assert 0.9 < least < mean
    assert spread(torch.ones(7, 3, dtype=torch.float64)) == pytest.approx((0.0, 0.0), abs=1e-12)
    one_column = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert spread(one_column) == pytest.approx((math.sqrt(2) / 2, 0.0))
    assert spread(torch.ones(1, 3, dtype=torch.float64)) == (None, None)


@pytest.mark.parametrize(("rows", "columns"), [(30, 5), (5, 30)])
def test_effective_rank_is_the_entropy_of_singular_values(rows: int, columns: int) -> None:
    z = drawn(rows, columns)
    share = torch.linalg.svdvals(z)
    share = share / share.sum()
    assert effective_rank(z) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-9)


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(6, dtype=torch.float64) * 3.0) == pytest.approx(6.0)
    assert effective_rank(torch.outer(drawn(9, 1)[:, 0], drawn(4, 1)[:, 0])) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(torch.zeros(3, 3, dtype=torch.float64)) is None
    assert effective_rank(torch.full((3, 3), math.nan, dtype=torch.float64)) is None


def test_uniformity_is_the_log_of_the_mean_gaussian_potential_over_pairs() -> None:
    z = drawn(8, 3)
    unit = [row / row.norm() for row in z]
    terms = [math.exp(-2.0 * float((unit[i] - unit[j]).square().sum())) for i in range(8) for j in range(i)]
    assert uniformity(z) == pytest.approx(math.log(sum(terms) / len(terms)))
    assert uniformity(torch.ones(4, 2, dtype=torch.float64)) == pytest.approx(0.0)
    assert uniformity(z[:1]) is None


@pytest.mark.parametrize("graph", [homogeneous(), heterogeneous()], ids=["one type", "several types"])
def test_alignment_of_links_is_over_sampled_edges_into_seeds(graph: SmallGraph) -> None:
    seeds = graph.all_seeds()[:12]
    batch = make_batch(graph, seeds, num_hops=1, fanout=2)
    z = drawn(batch.hops[0].num_sources, 4)
    expected, count = 0.0, 0
    hop = batch.hops[0]
    for relation in range(hop.indptr.shape[0]):
        for target in range(hop.num_targets):
            for edge in range(int(hop.indptr[relation, target]), int(hop.indptr[relation, target + 1])):
                source = int(hop.source[edge])
                if source != target:
                    expected += float((z[source] / z[source].norm() - z[target] / z[target].norm()).square().sum())
                    count += 1
    assert count > 5
    assert linked_distances(z, hop).tolist() == pytest.approx([expected, count])
    assert linked_distances(z[: len(seeds)], hop).tolist() == [0.0, 0.0]


def model_of(objective: str, *, encoder: str = "sage") -> tuple[Model, SmallGraph]:
    graph = homogeneous()
    sections = f"encoder: {{name: {encoder}, hidden_dim: 8}}\nobjective: {{{objective}}}\n"
    text = f"run: {{name: r}}\ndata: {{store: s}}\n{sections}"
    return build_model(parse_run_text(text, place="run.yaml"), graph.schema, group=Group()), graph


def test_states_are_those_of_the_forward_pass_and_nothing_listens_afterwards() -> None:
    model, graph = model_of("name: bgrl")
    batch = make_batch(graph, graph.all_seeds()[:9], num_hops=2, dtype=torch.float32)
    outputs: list[Tensor] = []
    hook = model.encoder.register_forward_hook(lambda _module, _arguments, output: outputs.append(output.detach()))
    states = SeedStates(views=model.objective.first_passes_are_views)
    with states.listening(model.encoder, batch):
        model(batch, Noise(3))
    found = states.figures(Group())
    hook.remove()
    one, other = (nn.functional.normalize(output[:9].double()) for output in outputs)
    assert found.alignment == pytest.approx(float((one - other).square().sum(1).mean()), rel=1e-5)
    assert found.effective_rank == pytest.approx(effective_rank(outputs[0][:9].double()), rel=1e-6)
    assert not model.encoder._forward_hooks
    assert states.figures(Group()) == Health()


def test_one_pass_is_aligned_over_links() -> None:
    model, graph = model_of("name: graphmae")
    batch = make_batch(graph, graph.all_seeds()[:9], num_hops=3, dtype=torch.float32)
    states = SeedStates()
    with states.listening(model.encoder, batch):
        model(batch, Noise(3))
    found = states.figures(Group())
    assert found.alignment is not None
    assert 0.0 < found.alignment < 4.0


def test_a_shuffled_graph_is_no_second_view() -> None:
    model, graph = model_of("name: infonce, mode: dgi")
    batch = make_batch(graph, graph.all_seeds()[:9], num_hops=2, dtype=torch.float32)
    outputs: list[Tensor] = []
    model.encoder.register_forward_hook(lambda _module, _arguments, output: outputs.append(output.detach()))
    states = SeedStates(views=model.objective.first_passes_are_views)
    with states.listening(model.encoder, batch):
        model(batch, Noise(3))
    total, count = linked_distances(outputs[0], batch.hops[0]).tolist()
    assert states.figures(Group()).alignment == (pytest.approx(total / count) if count else None)


def test_a_batch_without_seeds_has_no_figures() -> None:
    model, graph = model_of("name: graphmae")
    states = SeedStates()
    batch = make_batch(graph, [], num_hops=3, dtype=torch.float32)
    with states.listening(model.encoder, batch):
        model(batch, Noise(3))
    assert states.figures(Group()) == Health()


def test_an_encoder_that_reads_no_hop_has_no_links_to_be_aligned_over() -> None:
    model, graph = model_of("name: graphmae, decoder: mlp", encoder="mlp")
    batch = make_batch(graph, graph.all_seeds()[:9], num_hops=0, dtype=torch.float32)
    states = SeedStates()
    with states.listening(model.encoder, batch):
        model(batch, Noise(3))
    found = states.figures(Group())
    assert found.alignment is None
    assert found.effective_rank is not None


def test_a_collapse_is_told_with_the_figures() -> None:
    healthy = Health(std_mean=0.9, effective_rank=12.0)
    assert collapse_warning(healthy, min_std=0.05, min_rank=1.5) is None
    assert collapse_warning(Health(), min_std=0.05, min_rank=1.5) is None
    warning = collapse_warning(Health(std_mean=0.01, effective_rank=1.2), min_std=0.05, min_rank=1.5)
    assert warning is not None
    assert "0.01 on average, below 0.05" in warning
    assert "effective rank is 1.2, below 1.5" in warning


class Notes(NoProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_a_run_writes_its_health_at_logged_steps_and_warns_once(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = str(small_run(tmp_path, training={"log_every_steps": 5, "warn_rank": 1000}))
    notes = Notes()
    status = pretrain(load_run_file(run), progress=notes)
    rows = [json.loads(line) for line in (tmp_path / "runs" / "small" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    for row in rows:
        assert 0.0 < row["std_min"] <= row["std_mean"] < 2.0
        assert 1.0 < row["effective_rank"] < 16.0
        assert 0.0 < row["alignment"] < 4.0
        assert row["uniformity"] < 0.0
    assert status.health == Health(**{name: rows[-1][name] for name in asdict(Health())})
    (warning,) = status.warnings
    assert warning.startswith("step 5: representations collapse: the effective rank is")
    assert notes.told == [f"warning: {warning}"]
    read = read_status(Place(str(tmp_path / "runs" / "small")))
    assert read is not None
    assert (read.health, read.warnings) == (status.health, status.warnings)
