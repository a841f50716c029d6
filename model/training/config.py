"""Settings of a training run, except the shape of the network."""

from __future__ import annotations

from dataclasses import dataclass

from workflows.common.errors import UserError, bounded
from workflows.sampling.config import wrong_seed

CHOICES = {
    "negatives": ("exact", "uniform", "popularity", "static"),
    "precision": ("fp32", "tf32", "fp16", "bf16"),
    "eval": ("sampled", "full"),
    "validation": ("none", "leave-one-out"),
    "loader": ("merlin", "memory"),
    "loss": ("bce", "softmax", "bce-all"),
    "schedule": ("constant", "cosine"),
    "step": ("auto", "fused", "torch"),
}
_MAX = 1 << 63
MEMBERS = ("softmax", "bce-all", "item-item")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Names and defaults are the reference's; `python train.py --help` explains each."""

    epochs: int = 30
    batch_size: int = 2**20
    valid_batch_size: int = 2**20
    negative_samples: int = 4
    negatives: str = "exact"
    learning_rate: float = 0.0045
    beta1: float = 0.25
    beta2: float = 0.5
    eps: float = 1e-8
    topk: int = 10
    threshold: float = 1.0
    grads_accumulated: int = 1
    amp: bool = False
    precision: str | None = None
    compile: bool = False
    cuda_graphs: bool = False
    step: str = "auto"
    patience: int | None = None
    eval: str = "sampled"
    validation: str = "none"
    loader: str = "merlin"
    loss: str = "bce"
    weight_decay: float = 0.0
    recency: float = 0.0
    schedule: str = "constant"
    members: tuple[str, ...] = ()
    seed: int = 0

    @property
    def all_items_loss(self) -> bool:
        """Whether the loss is over all items instead of sampled negatives."""
        return self.loss != "bce"

    def __post_init__(self) -> None:
        wrong = []
        for name in ("epochs", "batch_size", "valid_batch_size", "topk", "grads_accumulated"):
            if getattr(self, name) < 1:
                wrong.append(f"--{name} should be 1 or more, got {getattr(self, name)}")
        for name in ("epochs", "batch_size", "valid_batch_size", "topk", "negative_samples", "patience"):
            if (getattr(self, name) or 0) >= _MAX:
                wrong.append(f"--{name} should be below 2^63, got {bounded(str(getattr(self, name)))}")
        if self.negative_samples < 0:
            wrong.append(f"--negative_samples should be 0 or more, got {self.negative_samples}")
        for name in ("learning_rate", "eps"):
            if not 0.0 < getattr(self, name) < float("inf"):
                wrong.append(f"--{name} should be above 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                wrong.append(f"--{name} should be in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "recency"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                wrong.append(f"--{name} should be 0 or more, got {getattr(self, name)}")
            elif getattr(self, name) and not self.all_items_loss:
                wrong.append(f"--{name} goes with --loss softmax or bce-all; leave it out, or add one")
        if self.members and self.loss != "bce":
            wrong.append("--members come with their own losses; leave --loss out")
        if self.members and not set(self.members) & set(CHOICES["loss"]):
            wrong.append("--members should hold softmax or bce-all at least once")
        if self.members and self.validation == "none":
            wrong.append("--members are selected on a validation split; add --validation leave-one-out")
        if self.members and (self.weight_decay or self.recency):
            wrong.append("--members come with their own penalties and recency; leave out --weight_decay and --recency")
        ignored: list[str] = []
        if self.all_items_loss or self.members:
            ignored += ["negatives", "negative_samples", "grads_accumulated", "compile", "cuda_graphs", "step"]
        if self.members:
            ignored += ["patience", "threshold"]
        for name in ignored:
            if getattr(self, name) != getattr(TrainConfig, name):
                flag = name.replace("cuda_", "cuda-")
                wrong.append(f"--{flag} does nothing with {'--members' if self.members else '--loss ' + self.loss}; "
                             "leave it out")  # fmt: skip
        if not 0.0 <= self.threshold < float("inf"):
            wrong.append(f"--threshold should be 0 or more, got {self.threshold}")
        if self.patience is not None and self.patience < 1:
            wrong.append(f"--patience should be 1 or more, got {self.patience}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known and not (name == "precision" and self.precision is None):
                wrong.append(f"--{name} should be one of {', '.join(known)}, got {getattr(self, name)}")
        if self.amp and self.precision in ("fp32", "tf32"):
            wrong.append(f"--amp asks for mixed precision and --precision {self.precision} for none; leave one out")
        if self.cuda_graphs and self.compile:
            wrong.append("--cuda-graphs and --compile cannot be combined; leave one out")
        if seed := wrong_seed(self.seed):
            wrong.append(seed)
        if self.grads_accumulated > self.batch_size:
            wrong.append(f"--grads_accumulated {self.grads_accumulated} exceeds --batch_size {self.batch_size}")
        if wrong:
            raise UserError("; ".join(wrong))
