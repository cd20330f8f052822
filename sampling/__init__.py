"""Mini-batches of sampled neighbourhoods: keyed random numbers, seed order, kernels, tiers, loader."""
