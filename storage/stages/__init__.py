"""The stages of an ingest, each within a memory budget: see `storage.ingest` for their order."""
