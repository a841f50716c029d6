"""The training step on a GPU with its layers fused in one Triton kernel."""
