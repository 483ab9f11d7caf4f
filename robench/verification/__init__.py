"""Verify records, and check whether a checkpoint is still as robust."""
