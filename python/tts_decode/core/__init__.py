"""Branches, whatever engine grows them: path, text, prompt, budget and state."""
