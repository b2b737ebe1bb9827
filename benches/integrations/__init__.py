"""Measurements of the integrations, each compared with its host project."""
