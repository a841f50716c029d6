"""NeuMF: network, batches, training, evaluation, and what a trained run is used for."""

from workflows.device.cores import share_cores

share_cores()  # before any module imports torch, NumPy or Arrow
