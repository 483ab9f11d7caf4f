"""The engine, which runs attacks: batches, verdicts, counts of passes, saving and resuming."""
