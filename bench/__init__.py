"""Benchmarks of this loader beside the stock one: ``python -m bench cpu``."""
