"""Settings that `vistill train` composes; experiment/ holds one file an experiment."""
