"""How each strategy is run for the tables of docs/strategies.md: its problems, and what it is given."""
