"""Lightning training: one module, data module, optimiser, freezing, callbacks."""
