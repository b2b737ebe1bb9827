"""Spending more, or less, on one line of thought."""
