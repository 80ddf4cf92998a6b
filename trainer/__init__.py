"""Training in PyTorch: data, network, objective, optimisers, loop. One step reads loop -> objective -> network."""
