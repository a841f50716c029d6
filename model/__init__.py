"""NeuMF: network, batches, training, evaluation, and what a trained run is used for."""

from workflows.common.errors import report_while_importing
from workflows.device.cores import share_cores
from workflows.device.memory import require_address_space, require_process_memory, torch_address_space

report_while_importing()
require_address_space(torch_address_space())
require_process_memory(356 << 20)
share_cores()  # before any module imports torch, NumPy or Arrow
