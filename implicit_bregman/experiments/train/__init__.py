"""Training one model on one or several devices, with logs, checkpoints and resumption."""
