"""GraphMAE2: what is hidden when, and what the target network does. The formula: tests/laws/test_graphmae2_peers.py."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.checkpoint import checkpoint_name, load_checkpoint
from service.encoders import Nodes
from service.group import Group
from service.model import Model, build_model
from service.noise import Noise, Site
from service.objectives.graphmae import GraphMaeConfig
from service.objectives.latent_prediction import LatentPrediction
from service.pretraining import pretrain
from service.run_file import load_run_file, parse_run_text
from storage.errors import BadInput
from storage.place import Place
from storage.progress import NoProgress
from tests.data import small_run, small_store
from tests.service.batches import heterogeneous, homogeneous, make_batch
from tests.service.dense_views import adjacency, build, dense_gcn
from tests.service.steps import losses_of_training

NOISE = Noise(17)
GRAPHMAE2 = GraphMaeConfig(
    mask_rate=0.6, replace_rate=0.0, exponent=2.0, decoder="gcn", latent_weight=3.0, projector_dim=7, remask_rate=0.4
)


def latent_of(model: Model) -> LatentPrediction:
    latent = model.objective.latent
    assert isinstance(latent, LatentPrediction)
    return latent


def parameter(model: Model, name: str) -> Tensor:
    return dict(model.named_parameters())[f"objective.{name}"]


def test_a_latent_weight_alone_makes_it_graphmae2_and_without_it_nothing_is_added() -> None:
    assert GraphMaeConfig(latent_weight=1.0).num_random_remasks == 3
    assert GraphMaeConfig(latent_weight=1.0, num_remasks=0).num_random_remasks == 0
    assert GraphMaeConfig(latent_weight=1.0, decoder="mlp").num_random_remasks == 0
    assert GraphMaeConfig().num_random_remasks == 0
    names = {name.split(".")[1] for name in build(homogeneous(), GraphMaeConfig()).objective.state_dict(prefix="o.")}
    assert names == {"tokens", "project", "decoders"}


def test_each_decoding_hides_a_share_of_all_nodes_of_its_own_and_no_others() -> None:
    graph = homogeneous(num_nodes=300)
    model = build(graph, GRAPHMAE2)
    with torch.no_grad():
        parameter(model, "remask_token").fill_(9.0)
    seen: list[Tensor] = []
    decoder = model.objective.get_submodule("decoders.0")
    decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    batch = make_batch(graph, graph.all_seeds()[:150], num_hops=3)
    model(batch, NOISE)
    hidden = torch.stack([(h == 9.0).all(1) for h in seen])
    assert hidden.shape == (3, batch.hops[0].num_sources)
    assert ((hidden.double().mean(1) - 0.4).abs() < 0.1).all()
    both = (hidden[0] & hidden[1]).double().mean()
    assert (both - 0.16).abs() < 0.06  # independent of each other
    kept = ~(hidden[0] | hidden[1])
    assert torch.equal(seen[0][kept], seen[1][kept])
    masked = NOISE.select(Nodes.of(batch).keys, 0.6, site=Site.MASK)[: hidden.shape[1]]
    assert 0.25 < hidden[0][masked].double().mean() < 0.55  # masked nodes are shown like others


def test_dropout_and_dropped_edges_are_of_the_masked_batch_and_the_target_sees_it_whole() -> None:
    graph = homogeneous()
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    model = build(graph, GRAPHMAE2, feature_dropout=0.4, edge_dropout=0.4)
    states: dict[str, list[Tensor]] = {"online": [], "target": []}
    for name, encoder in (("online", model.encoder), ("target", latent_of(model).target_encoder)):
        encoder.register_forward_hook(lambda _, __, out, name=name: states[name].append(out.detach()))
    for step in (1, 2):
        model(batch, Noise(step))
    assert not torch.allclose(states["online"][0], states["online"][1])
    assert torch.equal(states["target"][0], states["target"][1])
    whole = dense_gcn(model.encoder, adjacency(graph), torch.from_numpy(graph.features[0]))
    assert torch.allclose(states["target"][0], whole)


def test_seeds_of_types_without_features_have_latents_and_are_not_rebuilt() -> None:
    graph = heterogeneous()
    model = build(graph, GRAPHMAE2, name="sage")
    venues = make_batch(graph, [(2, node) for node in range(5)], num_hops=3)
    out = model(venues, NOISE)
    assert (out.count, out.loss_sum > 0.0) == (5, True)
    out.loss_sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_without_seeds_the_loss_is_nothing_and_all_gradients_are_zero() -> None:
    graph = homogeneous()
    model = build(graph, GRAPHMAE2, norm="batch")
    out = model(make_batch(graph, [], num_hops=3), NOISE)
    assert (out.loss_sum, out.count) == (0.0, 0.0)
    out.loss_sum.backward()
    for found in model.parameters():
        assert not found.requires_grad or (found.grad is not None and not found.grad.any())


def test_evaluation_hides_the_same_nodes_every_time_and_drops_nothing() -> None:
    graph = homogeneous()
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    noisy = build(graph, GRAPHMAE2, feature_dropout=0.5, edge_dropout=0.5)
    plain = build(graph, GRAPHMAE2)
    assert noisy(batch, None).loss_sum == plain(batch, None).loss_sum == plain(batch, Noise(0)).loss_sum


def test_the_target_begins_as_a_copy_follows_after_each_step_and_has_no_gradient() -> None:
    graph = homogeneous()
    model = build(graph, GRAPHMAE2.model_copy(update={"momentum": 0.9}), norm="batch")
    latent = latent_of(model)
    pairs = ((latent.target_encoder, model.encoder), (latent.target_projector, latent.projector))
    for target, online in pairs:
        state = online.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
        with torch.no_grad():
            for tensor in state.values():
                tensor.add_(torch.rand_like(tensor))
    model(make_batch(graph, graph.all_seeds(), num_hops=3), NOISE).loss_sum.backward()
    assert not any(
        found.requires_grad or found.grad is not None for target, _ in pairs for found in target.parameters()
    )
    before = [{name: tensor.clone() for name, tensor in target.state_dict().items()} for target, _ in pairs]
    model.objective.after_step(model.encoder, done=1, total_steps=4)
    for pair, old in zip(pairs, before, strict=True):
        followed, state = (module.state_dict() for module in pair)
        for name, tensor in followed.items():
            assert torch.allclose(tensor, 0.9 * old[name] + 0.1 * state[name], rtol=1e-12)


def test_under_accumulation_the_target_moves_once_a_step_behind_the_optimiser(tmp_path: Path) -> None:
    small_store(tmp_path)
    path = small_run(
        tmp_path,
        encoder={"norm": "none"},
        objective={"latent_weight": 1.0, "momentum": 0.75},
        training={"epochs": 1, "accumulate": 2, "checkpoint_every_steps": 1, "keep_checkpoints": 9},
    )
    run = load_run_file(str(path))
    assert pretrain(run, progress=NoProgress()).step == 3  # of five batches
    states = [load_checkpoint(Place(run.run.storage).child("small"), checkpoint_name(step)).model for step in (1, 2, 3)]
    prefix = "objective.latent.target_encoder."
    names = [name.removeprefix(prefix) for name in states[0] if name.startswith(prefix)]
    assert len(names) > 4
    for before, after in pairwise(states):
        for name in names:
            moved = 0.75 * before[prefix + name] + 0.25 * after[f"encoder.{name}"]
            assert torch.allclose(after[prefix + name], moved, rtol=1e-5, atol=1e-7)
    assert not torch.equal(states[0]["encoder." + names[0]], states[2]["encoder." + names[0]])


def test_a_multitask_run_begins_its_targets_with_the_encoders_weights() -> None:
    text = """
        run: {name: r}
        data: {store: s}
        encoder: {name: gcn, hidden_dim: 8}
        objective: {name: multitask, tasks: [{name: decorr}, {name: graphmae, latent_weight: 1, decoder: gcn}]}
        """
    model = build_model(parse_run_text(text, place="run.yaml"), homogeneous().schema, group=Group())
    state = model.state_dict()
    prefix = "objective.tasks.1.latent.target_encoder."
    copied = [name for name in state if name.startswith(prefix)]
    assert copied
    assert all(torch.equal(state[name], state[f"encoder.{name.removeprefix(prefix)}"]) for name in copied)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("decoder", ["gat", "mlp"])
def test_training_lowers_the_loss(decoder: str, precision: str) -> None:
    section = f"name: graphmae, latent_weight: 1, projector_dim: 16, decoder: {decoder}, mask_rate: 0.3"
    losses = losses_of_training(section, precision=precision, num_steps=40)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("latent_weight: -1", "objective.latent_weight=-1: .*greater than or equal to 0"),
        ("remask_rate: 0.3", "remask_rate=0.3: it has no effect where num_remasks is 0; leave it out"),
        ("momentum: 0.9", "momentum=0.9: it has no effect where latent_weight is 0; leave it out"),
        ("projector_dim: 8, num_remasks: 2", "projector_dim=8: it has no effect where latent_weight is 0"),
        ("decoder: mlp, num_remasks: 2", "num_remasks=2: decoder=mlp reads no neighbours.*; leave num_remasks out"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_key(section: str, found: str) -> None:
    with pytest.raises(BadInput, match=found):
        parse_run_text(f"{{run: {{name: r}}, data: {{store: s}}, objective: {{name: graphmae, {section}}}}}", place="r")
