"""The engine: batches rows, queries the judge, drops finished rows, refills, counts passes, saves and resumes."""
