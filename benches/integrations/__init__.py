"""Measurements of the integrations, each beside what it is built into."""
