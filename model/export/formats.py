"""Export formats of a trained network; each file is written atomically."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.data.run_data import RunData
from model.network.checkpoint import Run, save_tensors, weights_of, write_reference
from workflows.common.errors import UserError
from workflows.common.files import replace_file

_GROUP_ROWS = 1 << 16


def _write_nvidia(path: Path, run: Run) -> None:
    side = [feature.name for feature in (*run.model.config.row_side, *run.model.config.item_side)]
    if side:
        raise UserError(
            f"{run.folder} was trained with the side features {', '.join(side)}, which the reference's network does "
            "not have; train without them to export it, or choose another --format"
        )
    write_reference(path, run.model)


def _write_onnx(path: Path, run: Run) -> None:
    from model.export.onnx_graph import write_onnx  # onnx takes half a second

    write_onnx(path, run.model)


def _write_torch_export(path: Path, run: Run) -> None:
    """A program for torch.export.load: (users, items, side features of the row, each [batch]) -> logits."""
    side = run.model.config.row_side
    kinds = [torch.int64, torch.int64, *(torch.float32 if one.cardinality is None else torch.int64 for one in side)]
    # Distinct tensors: torch.export merges an input that is passed twice.
    examples = tuple(torch.zeros(2, dtype=kind) for kind in kinds)
    batch = {0: torch.export.Dim("batch")}
    shapes = (batch, batch, *([tuple(batch for _ in side)] if side else []))
    program = torch.export.export(run.model, examples, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains local paths
    content = io.BytesIO()
    torch.export.save(program, content)
    replace_file(path, content.getvalue())


def _write_safetensors(path: Path, run: Run) -> None:
    """One file: the parameters, and the network's shape as JSON under "model" in the header."""
    save_tensors(path, weights_of(run.model), {"model": json.dumps(asdict(run.model.config))})


# Default file name and writer of each format.
FILES: dict[str, tuple[str, Callable[[Path, Run], None]]] = {
    "nvidia": ("model.pth", _write_nvidia),
    "onnx": ("model.onnx", _write_onnx),
    "torch-export": ("model.pt2", _write_torch_export),
    "safetensors": ("neumf.safetensors", _write_safetensors),
}


@torch.no_grad()
def write_embeddings(folder: Path, run: Run, data: RunData) -> None:
    """Write `users.parquet` and `items.parquet`, one row per id: id (encoded), original, gmf, mlp.

    Users also have `trained`, a bool: the vectors of users that the run was not trained on mean nothing.

    The `gmf` [factors] of users is weighted by the network's last layer, so that the inner product of a user's and an
    item's `gmf` is the GMF branch's contribution to the logit. `mlp` [layers[0] / 2] is the input of the MLP. A branch
    that the network lacks has no column.
    """
    model = run.model
    head = model.final.weight[0, : model.config.factors]
    vectors = {
        "users": (data.users, model.mf_user_embed.weight * head, model.mlp_user_embed.weight),
        "items": (data.items, model.mf_item_embed.weight, model.mlp_item_embed.weight),
    }
    for name, (ids, gmf, mlp) in vectors.items():
        columns = {
            "id": pa.array(np.arange(len(ids)), pa.int32()),
            "original": pa.array(ids.originals(np.arange(len(ids)))),
            **({"trained": pa.array(data.trained)} if name == "users" else {}),
            **{branch: _vectors(matrix) for branch, matrix in (("gmf", gmf), ("mlp", mlp)) if matrix.shape[1]},
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=_GROUP_ROWS)


def _vectors(matrix: Tensor) -> pa.Array:
    """The rows of a float32 matrix as fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.contiguous().numpy().ravel()), matrix.shape[1])


def is_embeddings(folder: Path) -> bool:
    """Whether a folder was written by `write_embeddings`."""
    return {path.name for path in folder.iterdir()} == {"users.parquet", "items.parquet"}
