# Read by CMake inside llama.cpp's own project. Lockgate calls the library only: leaving out what the command line
# tools share halves the compilation.
set(LLAMA_BUILD_COMMON OFF)
