"""Lightning training: one module, data module, optimiser, freezing, callbacks."""

from vistill.models.torchvision_repair import repair_torchvision

repair_torchvision()  # importing Lightning imports torchvision, which may not load; no effect where it does
