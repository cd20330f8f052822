"""Tables in, an immutable on-disk graph store out: ingest, format, topology, features, block reads."""
