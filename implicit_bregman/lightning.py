"""A callback for Lightning and Lightning Fabric. It is imported by nothing else in the package.

Lightning asks every callback for all of its hooks, so the class has Lightning's own as its base where Lightning is
installed. Fabric asks for nothing but the hooks that are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from implicit_bregman.settings import check_count
from implicit_bregman.statistics import solver_statistics

if TYPE_CHECKING:
    Callback = object
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:
        try:
            from pytorch_lightning import Callback
        except ModuleNotFoundError:
            Callback = object


class LogSolverStatistics(Callback):
    """Logs `solver_statistics` after training batches: `Trainer(callbacks=[LogSolverStatistics()])`.

    The hook comes after `backward()`, so the estimated error of the gradient is among them. They are logged by
    `log_dict` of the module, or, if it has none, of the first argument: with Fabric that is
    `fabric.call("on_train_batch_end", fabric, model, outputs, batch, number)`.

    Args:
        every: after every so many batches of an epoch. Each time costs one transfer per layer from the device. It
            should divide Lightning's `log_every_n_steps`, which decides what reaches the logger.
        prefix: what the names begin with.

    Raises:
        ValueError: if `every` is no whole number of at least 1.
        TypeError: in a hook, if neither the module nor the trainer has `log_dict`.
    """

    def __init__(self, every: int = 1, prefix: str = "solver/") -> None:
        check_count("every", every)
        self.every = every
        self.prefix = prefix

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any = None, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Log, if it is this batch's turn."""
        if (batch_idx + 1) % self.every:
            return
        sink = next((each for each in (pl_module, trainer) if callable(getattr(each, "log_dict", None))), None)
        if sink is None:
            raise TypeError(
                f"neither the module ({type(pl_module).__name__}) nor the trainer ({type(trainer).__name__}) has "
                "log_dict: pass Fabric as the trainer, or log solver_statistics(model) yourself"
            )
        sink.log_dict({f"{self.prefix}{name}": value for name, value in solver_statistics(pl_module).items()})
