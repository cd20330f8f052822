"""The store beside other libraries: served to PyG and DGL, and filled from their objects.

    from service.interop.dgl_graphs import dgl_graph, ingest_dgl
    from service.interop.pyg_data import ingest_pyg, pyg_data
    from service.interop.pyg_stores import HopstreamFeatureStore, HopstreamGraphStore
    from storage.store import Store

    store = Store.open("my-store")
    remote = HopstreamFeatureStore(store), HopstreamGraphStore(store)  # for PyG's loaders; features stay on disk
    graph = dgl_graph(store)  # a dgl.DGLGraph in memory
    data = pyg_data(store)  # a torch_geometric HeteroData in memory
    ingest_dgl(graph, out="from-dgl", feature_dtype="float16")
    ingest_pyg(data, out="from-pyg", undirected=True)

`pyg_stores` and `pyg_data` need torch_geometric, `dgl_graphs` needs dgl; nothing is imported before it is used.
"""
