"""Gradients of a batch as one CUDA graph, so that the GPU does not wait for each kernel to be launched."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from model.data.batch import Batch

_WARM_UPS = 3  # libraries initialise in their first calls, which cannot be captured

Gradients = Callable[[Batch, Tensor], Tensor]


class GradientGraph:
    """A CUDA graph of a function that adds a batch's gradients to fixed memory (`TorchStep.gradients`).

    Once captured, the graph replays for batches of the first shape seen, which are copied to its input buffers. Before
    that, and for any other shape (the last batch of an epoch), the function itself is called. The all-reduce, Adam and
    the gradient scale stay outside the graph, so several ranks and float16 work as without it.
    """

    def __init__(
        self, gradients: Gradients, capture: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
    ) -> None:
        """
        Args:
            capture: see `workflows.device.torch_device.graph_capture`.
        """
        self._gradients, self._capture = gradients, capture
        self._shape: tuple[int, int] | None = None
        self._warm_ups = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, batch: Batch, weight: Tensor) -> Tensor:
        shape = (len(batch), batch.group_size)
        self._shape = self._shape or shape
        if shape != self._shape:
            return self._gradients(batch, weight)
        if self._replay is None:
            if self._warm_ups < _WARM_UPS:
                self._warm_ups += 1
                return self._gradients(batch, weight)
            self._replay = self._record(batch, weight)
        for fixed, given in zip((*self._batch.columns, self._weight), (*batch.columns, weight), strict=True):
            fixed.copy_(given)
        self._replay()
        return self._loss.clone()  # the next replay overwrites it

    def _record(self, batch: Batch, weight: Tensor) -> Callable[[], None]:
        self._batch, self._weight = (
            Batch.from_columns(map(Tensor.clone, batch.columns), batch.group_size),
            weight.clone(),
        )
        replay, self._loss = self._capture(lambda: self._gradients(self._batch, self._weight))
        return replay
