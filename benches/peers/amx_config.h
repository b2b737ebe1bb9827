// GCC 12's _tile_loadconfig tells the compiler of the first 8 of the 64 bytes that it reads, so that stores to
// the others are dropped, and llama.cpp dies at its first tile with an illegal instruction. This one tells of all.
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
