"""What a branch is, whatever grows it: its path, text, prompt, budget and state."""
