"""Tests of ``blockyard.hosts``: one contract, kept by a simulated kernel here and by a real one in a guest."""
