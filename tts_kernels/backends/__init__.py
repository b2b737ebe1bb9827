"""What runs on plain pages: Triton and CUDA C++, the choice between them, and what they are launched with."""
