"""Saved models whose weights are quantised: GPTQ, AWQ, compressed-tensors and MXFP4 in safetensors files."""
