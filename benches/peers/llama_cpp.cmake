# Read within llama.cpp's own project: its Python package asks for the library "common", which it does not use and
# which takes long to compile.
set(LLAMA_BUILD_COMMON OFF)
# AMX as its authors mean it, with GCC 12 too.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_compile_options("SHELL:-include ${CMAKE_CURRENT_LIST_DIR}/amx_config.h")
endif()
