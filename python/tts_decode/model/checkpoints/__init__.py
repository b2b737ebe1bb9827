"""Saved models whose weights are quantised: GPTQ, AWQ and compressed-tensors in safetensors files."""
