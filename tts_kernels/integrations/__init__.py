"""The kernels inside popular frameworks. Nothing here is imported with `tts_kernels` itself."""
