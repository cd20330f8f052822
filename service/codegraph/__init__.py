"""The code graph of a Python environment: a real graph that every machine has, for `hopstream demo`.

The standard library and the installed packages are read as text and parsed with `ast`; nothing of them is
imported or run. The path of a file through this package:

    sources       find the files and name their modules
    declarations  what one file declares and names
    parse         one file -> its classes, functions, calls, bases, imports and words
    package_names less the words that would tell the label
    features      words -> signed feature hashing, 128 float16 columns
    chunks        many files -> one compact message from a worker process
    resolve       names -> nodes, over all files
    tables        nodes and edges -> Parquet
    build         all of the above, with worker processes and progress: `write_code_graph`

Nodes: module, class, function. A definition inside a function is part of that function.
Edges: module contains class or function, class contains class or function, module imports module, function
calls function or class, class inherits class. Each edge is there once; no node calls, imports or inherits
itself.
"""
