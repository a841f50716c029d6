"""What others saved with torch, read without running anything that is in the file."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

from workflows.common.errors import bounded

_OTHER_OBJECTS = (
    "it holds other Python objects than tensors, or is damaged; save the state dict alone "
    "(torch.save(model.state_dict(), PATH)), or as .safetensors"
)


def load_torch_file(path: Path) -> Any:
    """The tensors, and dicts and lists of them, in a file written by `torch.save`; on the host.

    Raises:
        ValueError: with the reason: unreadable, or anything else is in it.
    """
    import torch  # preprocessing reads most logs without it

    try:
        if not path.is_file():
            raise ValueError("not a file" if path.exists() else "no such file")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not compress
                claimed = sum(record.file_size for record in archive.infolist())
            if claimed > path.stat().st_size:
                raise ValueError(f"its records claim {claimed:,} bytes, more than the file has")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises many types for files of others
        text = str(err)
        if type(err).__name__ == "UnpicklingError" or "weights_only" in text:  # advises to load the file unsafely
            raise ValueError(_OTHER_OBJECTS) from None
        raise ValueError(bounded(text.splitlines()[0], 200) if text else type(err).__name__) from None
