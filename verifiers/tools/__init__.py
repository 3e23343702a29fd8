"""Judging files, auditing labels, and the conformance kit for answer types."""
