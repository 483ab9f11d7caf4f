"""Evaluation of defenses: runs of suites, sweeps, security curves, transfer between data sets and fine-tuning."""
