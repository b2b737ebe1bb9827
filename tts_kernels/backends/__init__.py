"""Kernels for plain pages in Triton and CUDA C++, the choice between them, and their launch arguments."""
