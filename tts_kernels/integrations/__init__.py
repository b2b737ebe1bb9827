"""The kernels inside frameworks that people run. Nothing here is imported with `tts_kernels` itself."""
