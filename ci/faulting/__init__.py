"""Real faults: what `ci/faults` makes, and what a load promises under each."""
