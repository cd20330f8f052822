"""Encoders of users' own: the README's example trains and embeds, and what is no encoder is refused in one line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor, nn

from service.encoders import Encoder, EncoderConfig, Nodes, make_encoder
from service.encoders.hop_graph import HopGraph
from service.encoders.sage import SageConvolution
from service.message_passing import dgl_kernels
from service.pretraining import pretrain
from service.results import embed_run
from service.run_file import load_run_file
from storage.errors import BadInput
from storage.progress import NoProgress
from tests.data import ROOT, small_run, small_store
from tests.service import own_encoders
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.test_encoders import dense_adjacency, start

needs_dgl = pytest.mark.skipif(not dgl_kernels.is_available("cpu"), reason="dgl does not load here")
HERE = "tests.service.own_encoders"
GRAPHS = {"homogeneous": homogeneous(), "heterogeneous": heterogeneous(weighted=True)}


def own_encoder(graph: SmallGraph, name: str, **settings: object) -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig.model_validate({"name": f"{HERE}:{name}", "hidden_dim": 8, **settings})
    return make_encoder(config, schema=graph.schema).double()


@needs_dgl
def test_the_example_of_the_readme_trains_and_embeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own encoder")[2]
    code, settings = (
        re.findall(rf"^```{kind}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)[0] for kind in ("python", "yaml")
    )
    (tmp_path / "my_encoder.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    small_store(tmp_path)
    path = small_run(tmp_path)
    document = yaml.safe_load(path.read_text()) | yaml.safe_load(settings)
    path.write_text(yaml.safe_dump(document))
    run = load_run_file(str(path))
    assert pretrain(run, progress=NoProgress()).state == "finished"
    result = embed_run(run, store_url=None, out=str(tmp_path / "out"), progress=NoProgress())
    assert (result.rows, result.dim) == (300, 64)
    rows = np.stack(pq.read_table(tmp_path / "out" / "node")["embedding"].to_numpy())
    assert np.isfinite(rows).all()
    assert rows.std(axis=0).max() > 0.0


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_an_own_encoder_computes_on_the_edges_of_each_hop(graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    encoder = own_encoder(graph, "MeanEncoder", options={"slope": 0.3})
    batch = make_batch(graph, graph.all_seeds(), num_hops=2)
    h = start(encoder, batch)
    out = encoder(h, batch.hops[::-1], Nodes.of(batch))
    module = encoder.module
    assert isinstance(module, own_encoders.MeanEncoder)
    for number in range(2):
        total = module.own[number](h)
        maps = module.neighbor[number]
        assert isinstance(maps, nn.ModuleList)
        for relation in range(len(graph.schema.relations)):
            matrix = dense_adjacency(graph, relation)
            total = total + maps[relation](matrix / matrix.sum(1, keepdim=True).clamp(min=1e-30) @ h)
        h = nn.functional.leaky_relu(total, 0.3)
    assert torch.allclose(out, h, atol=1e-12)


@needs_dgl
def test_a_block_is_the_hop() -> None:
    graph = GRAPHS["heterogeneous"]
    batch = make_batch(graph, graph.all_seeds()[3:20], num_hops=1)
    hop = HopGraph(batch.hops[0], Nodes.of(batch), schema=graph.schema)
    assert hop.relations[0] == "paper:cites:paper"
    assert hop.node_type.tolist() == batch.node_type.tolist()
    for relation in range(len(hop.relations)):
        edges, block = hop.edges(relation), hop.block(relation)
        assert (block.num_src_nodes(), block.num_dst_nodes()) == (hop.num_sources, hop.num_targets) == (40, 17)
        sources, targets = block.edges()
        assert sources.tolist() == edges.source.tolist()
        assert targets.tolist() == edges.target.tolist()
        assert edges.weight is not None
        assert block.edata["weight"].tolist() == edges.weight.tolist()
        assert edges.num_in_edges.tolist() == batch.in_degree[relation, :17].tolist()


@needs_dgl
def test_dgl_modules_equal_sage_of_our_own() -> None:
    graph = GRAPHS["homogeneous"]
    own = own_encoder(graph, "DglEncoder")
    config = EncoderConfig(name="sage", hidden_dim=8, activation="relu")
    ours = make_encoder(config, schema=graph.schema).double()
    module = own.module
    assert isinstance(module, own_encoders.DglEncoder)
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            convolution: Any = module.layers[number][0]  # type: ignore[index]  # a ModuleList
            sage = layer.convolution
            assert isinstance(sage, SageConvolution)
            neighbor: Any = sage.neighbor
            sage.own.weight.copy_(convolution.fc_self.weight)
            sage.own.bias.copy_(convolution.fc_self.bias)
            neighbor[0].weight.copy_(convolution.fc_neigh.weight)
    batch = make_batch(graph, graph.all_seeds()[:9], num_hops=2, fanout=2)

    def run(encoder: Encoder) -> Tensor:
        out: Tensor = encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch))
        return out

    assert torch.allclose(run(own), run(ours), atol=1e-12)


def test_the_name_alone_is_an_encoder_section(tmp_path: Path) -> None:
    path = small_run(tmp_path)
    document = yaml.safe_load(path.read_text()) | {"encoder": f"{HERE}:MeanEncoder"}
    path.write_text(yaml.safe_dump(document))
    run = load_run_file(str(path))
    assert run.encoder == EncoderConfig(name=f"{HERE}:MeanEncoder")
    assert "options: {}" in run.to_yaml()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("no.such.module:MyEncoder", {}, "import of no.such.module fails (ModuleNotFoundError: No module named 'no'"),
        (f"{HERE}:Nothing", {}, f"module {HERE} has no Nothing"),
        (f"{HERE}:MeanEncoder", {"slop": 1}, "unexpected keyword argument 'slop'"),
        (f"{HERE}:NoLayer", {}, "a NoLayer without a method layer: an encoder is a torch.nn.Module with a method"),
        (f"{HERE}:NoModule", {}, "NoModule: an encoder is a torch.nn.Module with a method layer"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(name: str, options: dict[str, object], words: str) -> None:
    config = EncoderConfig.model_validate({"name": name, "options": options})
    with pytest.raises(BadInput) as caught:
        make_encoder(config, schema=homogeneous().schema)
    message = str(caught.value)
    assert message.startswith(f"encoder.name={name}: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("WrongShape", "layer 0 gave (40, 7) for 40 targets: it gives a tensor [targets, hidden_dim], here (40, 8)"),
        ("NoTensor", "layer 0 gave a NoneType for 40 targets"),
    ],
)
def test_a_wrong_shape_is_refused_in_one_line(name: str, words: str) -> None:
    graph = homogeneous()
    encoder = own_encoder(graph, name)
    batch = make_batch(graph, graph.all_seeds(), num_hops=2)
    with pytest.raises(BadInput) as caught:
        encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_that_a_batch_does_not_reach_have_a_gradient_of_zero() -> None:
    graph = GRAPHS["heterogeneous"]
    encoder = own_encoder(graph, "SkippingEncoder")
    for seeds in ([], graph.all_seeds()[:1]):
        batch = make_batch(graph, seeds, num_hops=2)
        encoder.zero_grad()
        encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch)).sum().backward()
        module = encoder.module
        assert isinstance(module, own_encoders.SkippingEncoder)
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in module.parameters())
