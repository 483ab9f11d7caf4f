"""The engine: it batches rows, asks the judge, drops and refills, counts, saves and resumes."""
