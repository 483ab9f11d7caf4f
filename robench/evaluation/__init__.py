"""Running suites on defenses: one run, a sweep, a security curve, transfer, fine-tuning."""
