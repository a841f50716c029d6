"""NeuMF: network, batches, training, evaluation, and what a trained run is used for."""
