"""Evaluation of defenses: runs of suites, sweeps, security curves, transfer between datasets and fine-tuning."""
