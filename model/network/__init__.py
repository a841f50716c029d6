"""The network, its weights on disk, and the loading of a trained run."""
