"""Foundations of all packages: errors, registries, specs, random numbers, files and text."""
