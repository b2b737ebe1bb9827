# Read within llama.cpp's own project: its Python package asks for the library "common", which it does not use and
# which takes long to compile.
set(LLAMA_BUILD_COMMON OFF)
