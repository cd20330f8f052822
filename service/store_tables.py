"""What the commands that write stores show to people; imports nothing that needs torch, whose memory is not theirs."""

from typing import Any

from rich.table import Table

from storage.collect import Collected
from storage.schema import Generation


def two_columns(title: str, rows: dict[str, Any]) -> Table:
    """A table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="cyan")
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def ingest_table(store: str, generation: Generation) -> Table:
    """What a store holds after an ingest or a change."""
    rows: dict[str, Any] = {}
    for kind in generation.node_types:
        deleted = f", {kind.num_deleted:,} deleted" if kind.num_deleted else ""
        features = f", {kind.feature_dim} {kind.feature_dtype}" if kind.feature_dim else ""
        rows[f"nodes {kind.name}"] = f"{kind.num_live:,}{features}{deleted}"
    for info in generation.relations:
        rows[f"edges {info.relation}"] = f"{info.num_edges:,}"
    return two_columns(f"{store}, generation {generation.generation}", rows)


def collected_table(found: Collected) -> Table:
    """What `gc` removed, or would."""
    verb = "would be removed" if found.dry_run else "removed"
    return two_columns(
        found.store,
        {
            "generations kept": ", ".join(map(str, found.kept)),
            f"generations {verb}": ", ".join(map(str, found.removed)) or "none",
            f"files {verb}": f"{len(found.files):,}",
            "would be freed" if found.dry_run else "freed": size(found.freed_bytes),
        },
    )
