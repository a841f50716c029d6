"""From raw logs to prepared folders: sources, FeatureSpec and the workflow that connects them."""

from workflows.common.errors import report_while_importing
from workflows.device.cores import share_cores
from workflows.device.memory import require_address_space, require_process_memory

report_while_importing()
require_address_space(9 << 28)
require_process_memory(176 << 20)
share_cores()  # before any module imports torch, NumPy or Arrow
