"""NVTabular operators: encode ids, split leave-one-out, draw negatives; usable in any workflow.

`AppendNegatives` and `LeaveOneOut` need ids encoded by `EncodeIds`, and partitions that hold whole users.
"""

from workflows.operators.append_negatives import AppendNegatives
from workflows.operators.encode import EncodeIds
from workflows.operators.item_statistics import ItemStatistics
from workflows.operators.leave_one_out import LeaveOneOut

__all__ = ["AppendNegatives", "EncodeIds", "ItemStatistics", "LeaveOneOut"]
