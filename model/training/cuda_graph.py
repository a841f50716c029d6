"""Work on a batch as one CUDA graph, so that the GPU does not wait for each kernel to be launched."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from model.data.batch import Batch

_WARM_UPS = 3  # libraries initialise in their first calls, which cannot be captured

Work = Callable[[Batch, Tensor], Tensor]


class StepGraph:
    """A CUDA graph of a function of a batch and a scalar that works on fixed memory.

    That is a whole fused step (`FusedTraining`), with the exchange between ranks and Adam; or only the gradients of the
    torch step (`TorchStep.gradients`), since a GradScaler and torch's all-reduce stay outside of graphs.

    Once captured, the graph replays for batches of the first shape seen, which are copied to its input buffers. Before
    that, and for any other shape (the last batch of an epoch), the function itself is called.
    """

    def __init__(
        self, work: Work, capture: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
    ) -> None:
        """
        Args:
            work: returns a scalar, the summed loss.
            capture: see `workflows.device.torch_device.graph_capture`.
        """
        self._work, self._capture = work, capture
        self._shape: tuple[int, int] | None = None
        self._warm_ups = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, batch: Batch, weight: Tensor) -> Tensor:
        shape = (len(batch), batch.group_size)
        self._shape = self._shape or shape
        if shape != self._shape:
            return self._work(batch, weight)
        if self._replay is None:
            if self._warm_ups < _WARM_UPS:
                self._warm_ups += 1
                return self._work(batch, weight)
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
        replay, self._loss = self._capture(lambda: self._work(self._batch, self._weight))
        return replay
