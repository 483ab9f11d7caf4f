"""What every room stands on: errors, names and their specs, random numbers, files, text."""
