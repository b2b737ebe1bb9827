"""Runs each strategy for the tables of docs/strategies.md: its problems, and its inputs."""
