"""The one LightningModule: tasks differ by objective and batch."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from vistill.data.collate import Batch
from vistill.distill.objective import CaptionObjective
from vistill.models.captioner import TorchStepper
from vistill.models.loading import AnyCaptioner
from vistill.models.tokens import BOS, EOS
from vistill.runtime.decode import GenerationConfig, generate
from vistill.train.optim import OptimConfig, build_optimizer, build_schedule


class CaptionModule(L.LightningModule):
    """Trains a captioner by its objective; validation writes captions, nothing else."""

    def __init__(
        self,
        model: AnyCaptioner,
        objective: CaptionObjective,
        optim: OptimConfig,
        generation: GenerationConfig,
        steps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.heads = objective.heads  # learn with the model, are never part of its checkpoint
        self.optim = optim
        self.generation = generation
        self.steps = steps  # Lightning's own estimate makes the loader before its state can be restored

    def training_step(self, batch: Batch, index: int) -> Tensor:
        losses = self.objective(self.model, batch)
        total = self.objective.total(losses)
        size = len(batch.keys)
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()}, batch_size=size)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        return total

    @torch.inference_mode()
    def validation_step(self, batch: Batch, index: int) -> dict[str, str]:
        """{key: caption} of the batch."""
        stepper = TorchStepper(self.model, self.model.vision(batch.pixels, batch.start))
        found = generate(stepper, len(batch.keys), bos=BOS, eos=EOS, config=self.generation)
        texts = self.objective.tokenizer.decode_batch([list(hypotheses[0].tokens) for hypotheses in found])
        return dict(zip(batch.keys, texts, strict=True))

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.optim, self.heads)
        schedule = build_schedule(optimizer, self.optim, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
