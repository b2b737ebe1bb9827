"""The kernels inside other projects' engines. Nothing here is imported before such an engine asks for it."""
