"""A trained network as an ONNX graph, built operator by operator so that it does not depend on torch's version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.network.neumf import NeuMF
from workflows.common.errors import UserError
from workflows.common.files import replace_file

_OPSET, _IR_VERSION = 17, 8  # from 2022, so that older runtimes accept it
_ID = TensorProto.INT64
_MAX_BYTES = (1 << 31) - (1 << 20)  # limit of a protobuf message


def write_onnx(path: Path, model: NeuMF) -> None:
    """Write a network atomically, with a dynamic batch size.

    Inputs, each [batch]: `users` and `items`, int64 ids, and `row_side.NAME` for each row side feature, int64 or
    float32. Output: `logits`, float32 [batch], NaN for a pair with an id outside its range (a plain Gather would take
    a negative one from the end). Initializers have the names of the network's parameters.

    Raises:
        UserError: the network does not fit in one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > _MAX_BYTES:
        raise UserError(
            f"the network has {size:,} bytes, but an ONNX file holds at most {_MAX_BYTES:,}; use --format torch-export"
        )
    graph = _Graph(model).graph()
    opset = helper.make_opsetid("", _OPSET)
    content = helper.make_model(graph, opset_imports=[opset], producer_name="neumf-pipeline", ir_version=_IR_VERSION)
    onnx.checker.check_model(content)
    replace_file(path, content.SerializeToString(deterministic=True))


class _Graph:
    """`NeuMF.forward` in evaluation mode, operator by operator."""

    def __init__(self, model: NeuMF) -> None:
        self._shape = model.config
        self._nodes: list[Any] = []
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
        self._initializers = [numpy_helper.from_array(values, name) for name, values in weights.items()]
        for name, value in (("axis_1", np.array([1])), ("zero", np.int64(0)), ("NaN", np.float32(np.nan))):
            self._initializers.append(numpy_helper.from_array(np.asarray(value), name))
        self._in_range: list[str] = []  # bool [batch] each

    def graph(self) -> Any:
        row_side = [f"row_side.{feature.name}" for feature in self._shape.row_side]
        users, items = self._checked("users", self._shape.n_users), self._checked("items", self._shape.n_items)
        gmf = self._add("Mul", self._rows("mf_user_embed", users), self._rows("mf_item_embed", items))
        ids = self._rows("mlp_user_embed", users), self._rows("mlp_item_embed", items)
        side = [
            name if feature.cardinality is None else self._checked(name, feature.cardinality)
            for name, feature in zip(row_side, self._shape.row_side, strict=True)
        ]
        hidden = self._add("Concat", *ids, *self._side_inputs(side, items), axis=1)
        for number in range(len(self._shape.layers) - 1):
            hidden = self._add("Relu", self._linear(f"mlp.{number}", hidden))
        logits = self._linear("final", self._add("Concat", gmf, hidden, axis=1))
        valid = self._in_range[0]
        for one in self._in_range[1:]:
            valid = self._add("And", valid, one)
        score = self._add("Squeeze", logits, "axis_1")
        self._nodes.append(helper.make_node("Where", [valid, score, "NaN"], ["logits"]))
        types = [TensorProto.FLOAT if feature.cardinality is None else _ID for feature in self._shape.row_side]
        inputs = zip(("users", "items", *row_side), (_ID, _ID, *types), strict=True)
        return helper.make_graph(
            self._nodes,
            "NeuMF",
            [helper.make_tensor_value_info(name, kind, ["batch"]) for name, kind in inputs],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"])],
            self._initializers,
        )

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _checked(self, ids: str, n: int) -> str:
        """The ids, moved into 0 .. n - 1; pairs whose ids are moved get no score."""
        self._initializers.append(numpy_helper.from_array(np.asarray(np.int64(n - 1)), f"last.{ids}"))
        moved = self._add("Clip", ids, "zero", f"last.{ids}")
        self._in_range.append(self._add("Equal", ids, moved))
        return moved

    def _rows(self, embedding: str, ids: str) -> str:
        return self._add("Gather", f"{embedding}.weight", ids)

    def _linear(self, layer: str, inputs: str) -> str:
        return self._add("Gemm", inputs, f"{layer}.weight", f"{layer}.bias", transB=1)

    def _side_inputs(self, row_side: Sequence[str], items: str) -> Iterator[str]:
        """As `NeuMF.side_inputs`."""
        tables = [self._add("Gather", f"item_side_{number}", items) for number in range(len(self._shape.item_side))]
        embedded = 0
        for feature, values in zip((*self._shape.row_side, *self._shape.item_side), (*row_side, *tables), strict=True):
            if feature.cardinality is None:
                yield self._add("Unsqueeze", values, "axis_1")
            else:
                yield self._rows(f"side_embed.{embedded}", values)
                embedded += 1
