"""Tests of the SCSI declarations."""
