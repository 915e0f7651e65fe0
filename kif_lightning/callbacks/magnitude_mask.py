"""Update only the output dimensions that a task's own rows drive the most."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from kif_lightning import ranks
from kif_lightning.errors import UserError, require_between
from kif_lightning.interfaces import LearningModule


class MagnitudeMask(Callback):
    """From the second task on, small output dimensions of linear layers get no gradient.

    In each optimizer step and for each ``nn.Linear`` with a trainable weight (O, I), LoRA's A and B
    among them: ``m_o = sum |y_o|`` over all positions of the step's micro-batches; the gradient's
    row o (and the bias's entry) becomes zero unless ``m_o`` is at least the layer's ``quantile`` of
    m (Du et al., arXiv 2406.17245). y is the layer's output; for LoRA's B that of the whole layer
    it adds to, base weights included. Positions that the batch pads do not count
    (but in a decoder's output layer, which sees the last positions alone). Micro-batches of all
    processes count.

    The mask acts before the gradient is checked, measured and clipped. An optimizer with momentum
    or weight decay moves masked rows nevertheless. The output layer, where it is tied to the
    embeddings and learns, masks the embeddings' gradient. The only state is the number of tasks
    learnt.

    Args:
        quantile: share of a layer's output dimensions to mask, in [0, 1]; interpolated linearly.

    Raises:
        UserError: a quantile out of range; from :meth:`check`, if no linear layer is trainable.
    """

    def __init__(self, *, quantile: float = 0.7) -> None:
        require_between("magnitude_mask.quantile", quantile, 0.0, 1.0)
        self.quantile = quantile
        self._tasks_learnt = 0
        self._magnitudes: dict[nn.Linear, Tensor] = {}
        self._layers: list[nn.Linear] = []
        self._handles: list[RemovableHandle] = []
        self._real: list[Tensor] = []
        self._filler = False

    def check(self, module: LearningModule) -> None:
        """Refuse a model in which nothing could be masked."""
        if not listened_modules(module):
            raise UserError(
                "The magnitude mask works on linear layers with trainable weights, but the model "
                "has none: use method/adapter=lora (or full)."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the layers, unless this is the first task, which may use all of them."""
        learning: Any = pl_module
        self.check(learning)
        self._remove_hooks()
        if self._tasks_learnt > 0:
            listened = listened_modules(learning)
            self._layers = list(listened)
            self._handles = [
                source.register_forward_hook(partial(self._listen, layer, sees_target(name)))
                for layer, (name, source) in listened.items()
            ]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Which positions of source and target are no padding, each (N, positions)."""
        self._filler = not batch["weight"]
        inputs = batch["inputs"]
        self._real = [inputs["attention_mask"] > 0, inputs["labels"] >= 0]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Mask; Lightning calls this before the module's own hook."""
        for layer, magnitude in self._magnitudes_of_all().items():
            kept = largest(magnitude, self.quantile)
            for parameter in layer.parameters(recurse=False):
                if parameter.grad is not None:
                    # A product, so that a gradient that is not finite is seen and the step skipped.
                    shape = [-1] + [1] * (parameter.dim() - 1)
                    parameter.grad.mul_(kept.view(shape))
        self._magnitudes.clear()

    def _magnitudes_of_all(self) -> dict[nn.Linear, Tensor]:
        """Summed over processes; one that had fillers only takes part with zeros."""
        if ranks.world_size() == 1:
            return self._magnitudes
        found = {}
        for layer in self._layers:
            zeros = layer.weight.new_zeros(layer.out_features, dtype=torch.float32)
            found[layer] = self._magnitudes.get(layer, zeros)
        used = torch.tensor([float(layer in self._magnitudes) for layer in self._layers])
        ranks.sum_([*found.values(), used])
        flags = zip(found.items(), used.tolist(), strict=True)
        return {layer: magnitude for (layer, magnitude), number in flags if number}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One more task is learnt."""
        self._remove_hooks()
        self._tasks_learnt += 1

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the model as it was."""
        self._remove_hooks()

    def state_dict(self) -> dict[str, Any]:
        """The number of tasks learnt."""
        return {"tasks_learnt": self._tasks_learnt}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._tasks_learnt = int(state_dict.get("tasks_learnt", 0))

    def _listen(
        self, layer: nn.Linear, target_first: bool, source: nn.Module, _: Any, output: Tensor
    ) -> None:
        # A look at held-out rows or a teacher's pass is no training. Gradient checkpointing
        # computes every training pass twice, which doubles the sums: what is kept stays.
        if source.training and not self._filler:
            magnitudes = output.detach().abs()
            for real in reversed(self._real) if target_first else self._real:
                if real.shape == output.shape[:-1]:
                    magnitudes = magnitudes * real.unsqueeze(-1)
                    break
            magnitude = magnitudes.flatten(0, -2).sum(dim=0, dtype=torch.float32)
            before = self._magnitudes.get(layer)
            self._magnitudes[layer] = magnitude if before is None else before + magnitude

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._layers = [], []
        self._magnitudes.clear()


def largest(magnitude: Tensor, quantile: float) -> Tensor:
    """Which of a layer's magnitudes (O,) are at least their quantile; (O,) booleans.

    Equal magnitudes are all kept.
    """
    return magnitude >= torch.quantile(magnitude, quantile)


def sees_target(name: str) -> bool:
    """Whether a module works on the target's positions, told by its name in an encoder-decoder."""
    cross = re.search(r"(EncDecAttention|encoder_attn)\.(k|v|k_proj|v_proj)(\.|$)", name)
    return "decoder." in name and cross is None


def listened_modules(module: LearningModule) -> dict[nn.Linear, tuple[str, nn.Module]]:
    """Linear layers whose weight learns now -> name and module of the output that counts."""
    learning: Any = module
    trainable = {id(parameter) for parameter in module.trainable_parameters.values()}
    modules: dict[str, nn.Module] = dict(learning.model.named_modules())
    return {
        layer: (name, modules[name.partition(".lora_B.")[0]])
        for name, layer in modules.items()
        if isinstance(layer, nn.Linear) and id(layer.weight) in trainable
    }
