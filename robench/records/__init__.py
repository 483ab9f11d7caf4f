"""What a run leaves behind on disk: records, samples, certificates; merged, exported, pruned."""
