"""Tests of the sans-IO iSCSI engine."""
