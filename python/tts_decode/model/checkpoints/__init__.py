"""Saved models with quantised weights: GPTQ, AWQ, compressed-tensors and MXFP4 in safetensors files."""
