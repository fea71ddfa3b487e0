"""What networks are trained to do: objectives for `lib.train.fit`, one for each kind of task."""

from torch import Tensor, nn
from torch.nn import functional as F

from lib.train import Objective


def classification(label_smoothing: float = 0.0) -> Objective:
    """Return the cross-entropy objective over batches of inputs (B, …) and labels (B,).

    Besides `loss` and `count` it sums `accuracy`, the inputs whose largest logit is their label's.
    Labels are smoothed in training only, so that validation losses compare (Szegedy et al. 2016).
    """

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, labels = batch
        logits = model(inputs).float()
        if model.training:
            loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
            return {"loss": loss, "count": len(labels)}
        correct = (logits.argmax(1) == labels).sum()
        return {
            "loss": F.cross_entropy(logits, labels, reduction="sum"),
            "accuracy": correct,
            "count": len(labels),
        }

    return objective
