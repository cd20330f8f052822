"""The store beside other libraries: served to PyG and DGL, and filled from their objects.

`pyg_stores` and `pyg_data` need torch_geometric, `dgl_graphs` needs dgl; nothing is imported before it is used.
"""
