"""Sample datasets, for the demo, the benchmarks and the tests."""
