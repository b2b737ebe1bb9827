"""Strict JSON, and locked files of records with checksums."""
