from typing import Any

import pytest
from pydantic import ValidationError

from storage.errors import BadInput
from storage.schema import EdgeSegment, FileInfo, Generation, NodeSegment, NodeType, Relation, RelationInfo


def file_info(name: str) -> FileInfo:
    return FileInfo(name=name, num_bytes=5000, num_pages=2, sums_xxh64="0123456789abcdef")


def node_type(**changed: Any) -> NodeType:
    segment = NodeSegment(
        segment=0,
        first_id=0,
        num_nodes=3,
        ids=file_info("nodes/a/ids.0.parquet"),
        lookup=file_info("nodes/a/lookup.0.npy"),
        features=None,
    )
    given: dict[str, Any] = {
        "name": "a",
        "num_nodes": 3,
        "id_type": "int64",
        "feature_dim": None,
        "feature_dtype": None,
        "has_label": False,
        "has_split": False,
        "has_timestamp": False,
        "segments": (segment,),
    }
    return NodeType(**{**given, **changed})


def test_a_relation_is_written_and_read_as_source_name_target() -> None:
    relation = Relation.parse("author:writes:paper")
    assert relation == ("author", "writes", "paper")
    assert str(relation) == "author:writes:paper"
    assert relation.folder == "author__writes__paper"


@pytest.mark.parametrize("text", ["writes", "a:b", "a:b:c:d", "a::c", "a:b/c:d", "a:..:c", "a:b__c:d", "a:b_:c"])
def test_a_relation_that_cannot_name_a_folder_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Relation.parse(text)


def test_distinct_relations_have_distinct_folders() -> None:
    names = ["_N", "a", "a_b", "_a", "b.c", "b-c"]
    relations = [Relation.parse(f"{a}:{b}:{c}") for a in names for b in names for c in names]
    assert len({relation.folder for relation in relations}) == len(relations)


def test_page_sums_lie_beside_their_file() -> None:
    assert file_info("nodes/b.c/ids.0.parquet").sums_name == "nodes/b.c/ids.0.sums.npy"
    assert file_info("nodes/a/lookup.12.npy").sums_name == "nodes/a/lookup.12.sums.npy"


@pytest.mark.parametrize("name", ["/etc/a.npy", "../a.npy", "nodes/../../a.npy", "nodes/a"])
def test_a_file_outside_the_store_cannot_be_named(name: str) -> None:
    with pytest.raises(ValidationError):
        file_info(name)


def relation_info(relation: Relation, *, reverse_of: Relation | None) -> RelationInfo:
    edges = EdgeSegment(
        segment=0,
        num_edges=4,
        indptr=file_info("edges/indptr.0.npy"),
        indices=file_info("edges/indices.0.npy"),
        out_degree=file_info("edges/out_degree.0.npy"),
        weight=None,
        timestamp=None,
    )
    return RelationInfo(
        relation=relation,
        reverse_of=reverse_of,
        num_edges=4,
        has_weight=False,
        has_timestamp=False,
        segments=(edges,),
    )


def generation(*, node_types: tuple[NodeType, ...], relations: tuple[RelationInfo, ...]) -> Generation:
    return Generation(
        format_version=1,
        generation=2,
        node_types=node_types,
        relations=relations,
        settings={"fanout": [15, 10]},
        report={"duplicates": 0},
    )


def test_a_generation_survives_json() -> None:
    relation = Relation("a", "to", "a")
    written = generation(node_types=(node_type(),), relations=(relation_info(relation, reverse_of=relation),))
    again = Generation.model_validate_json(written.model_dump_json())
    assert again == written
    assert isinstance(again.relations[0].relation, Relation)
    assert len(again.files()) == 5


def test_a_generation_that_contradicts_itself_is_refused() -> None:
    to_itself, to_b = Relation("a", "to", "a"), Relation("a", "to", "b")
    a = (node_type(),)
    with pytest.raises(ValidationError, match="distinct"):
        generation(node_types=a + a, relations=())
    with pytest.raises(ValidationError, match="its node types are not in this generation"):
        generation(node_types=a, relations=(relation_info(to_b, reverse_of=None),))
    with pytest.raises(ValidationError, match="reverse_of a:to:b is not in this generation"):
        generation(node_types=a, relations=(relation_info(to_itself, reverse_of=to_b),))


@pytest.mark.parametrize(
    "changed",
    [
        {"num_nodes": 4},
        {"name": "a b"},
        {"feature_dim": 4},
        {"feature_dim": 4, "feature_dtype": "float32"},
        {"feature_dtype": "float64"},
        {"id_type": "int32"},
        {"segments": ()},
        {"unknown": 1},
    ],
)
def test_a_node_type_that_contradicts_itself_is_refused(changed: dict[str, Any]) -> None:
    node_type()
    with pytest.raises(ValidationError):
        node_type(**changed)
