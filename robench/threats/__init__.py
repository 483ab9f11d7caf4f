"""Threat models: a norm and a radius, or a transformation and a budget."""
