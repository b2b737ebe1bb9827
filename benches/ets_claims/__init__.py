"""Measures the claims of ETS over REBASE: `python -m benches.ets_claims --help`."""
