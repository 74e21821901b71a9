"""Tests of ``blockyard.docker`` over the simulated host and target."""
