"""Benchmarks: latency, load and endurance of the engine, beside the plain loop."""
