"""From raw logs to prepared folders: sources, FeatureSpec and the workflow that connects them."""

from workflows.device.cores import share_cores

share_cores()  # before any module imports torch, NumPy or Arrow
