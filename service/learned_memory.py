"""Whether learned rows fit into memory, before any is made."""

from service.encoders.id_embedding import FLOAT_BYTES, table_bytes
from service.machine_memory import anonymous_bytes
from service.run_file import RunFile
from service.schema import GraphSchema
from service.tier_budget import memory_budget
from storage.errors import BadInput

MIB = 1 << 20
COPIES = 2
"""the rows, and a checkpoint of them while it is written or read"""
PROBE_COPIES = 2
"""those that a validation probe has and those that it is given"""


def check_learned_rows(run: RunFile, schema: GraphSchema) -> None:
    """Raise BadInput with the widest rows that would fit, where learned rows do not fit into a worker's memory."""
    dim = run.encoder.id_embedding_dim
    if dim is None:
        return
    copies = COPIES + (0 if run.training.probe.every_steps is None else PROBE_COPIES)
    needed = copies * table_bytes(run.encoder, schema)
    left = max(0, memory_budget(run, num_workers=1) - anonymous_bytes())
    if needed <= left:
        return
    per_column = needed // (dim + 1)
    fitting = left // max(1, per_column) - 1  # a column is the optimiser's
    narrower = f"set encoder.id_embedding_dim to at most {fitting}, " if fitting >= 1 else ""
    raise BadInput(
        f"encoder.id_embedding_dim={dim}",
        f"{-(-needed // MIB)} MiB are needed for {per_column // (copies * FLOAT_BYTES)} learned rows with their "
        "optimiser state and a checkpoint of them",
        rule=f"they are in the memory of every worker, of which {left // MIB} MiB are left",
        remedy=f"{narrower}name fewer types in encoder.id_embedding_types, or give more memory",
    )
