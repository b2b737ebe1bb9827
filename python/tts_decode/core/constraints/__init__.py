"""What the text of a branch has to match, and where a branch stands in it."""
