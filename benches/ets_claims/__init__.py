"""What ETS claims against REBASE, measured: `python -m benches.ets_claims --help`."""
