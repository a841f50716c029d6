"""The HTTP service of a trained run; `model.serve` starts it."""
