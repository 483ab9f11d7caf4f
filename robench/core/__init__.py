"""Foundations of every package: errors, registries and specs, random numbers, files, text."""
