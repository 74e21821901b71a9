"""Tests of the SCSI device server."""
