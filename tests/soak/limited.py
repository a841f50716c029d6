"""`python limited.py BYTES -m MODULE …` or `… FILE …`: a command that may write no file larger than BYTES.

The system answers as it does on a full disk, except that the error is EFBIG.
"""

from __future__ import annotations

import resource
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.path[0] = str(Path.cwd())
    if sys.argv[2] == "-m":
        sys.argv = sys.argv[3:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
