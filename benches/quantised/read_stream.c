/* Reads memory with several threads and plain vector loads: what a step that reads all weights is bound by. */
#include <pthread.h>
#include <stddef.h>

enum { MOST_THREADS = 256, STREAMS = 8 };

typedef long long Vector __attribute__((vector_size(64)));

struct Part {
    const Vector *begin, *end;
    Vector sum;
};

static void *read_part(void *argument) {
    struct Part *part = argument;
    Vector sums[STREAMS] = {{0}};
    for (const Vector *at = part->begin; at < part->end; at += STREAMS)
        for (int i = 0; i < STREAMS; ++i) sums[i] ^= at[i];
    for (int i = 0; i < STREAMS; ++i) part->sum ^= sums[i];
    return NULL;
}

/* memory: aligned to 64 bytes, at least `bytes`. Returns how many bytes were read, 0 where no thread started. */
size_t read_memory(const void *memory, size_t bytes, int threads) {
    pthread_t running[MOST_THREADS];
    struct Part parts[MOST_THREADS];
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    size_t each = bytes / sizeof(Vector) / STREAMS / threads * STREAMS, started = 0;
    for (; started < (size_t)threads; ++started) {
        struct Part *part = &parts[started];
        *part = (struct Part){(const Vector *)memory + started * each, NULL, {0}};
        part->end = part->begin + each;
        if (pthread_create(&running[started], NULL, read_part, part)) break;
    }
    Vector sum = {0};
    for (size_t i = 0; i < started; ++i) {
        pthread_join(running[i], NULL);
        sum ^= parts[i].sum;
    }
    volatile long long kept = sum[0]; /* or the compiler would leave the loads out */
    (void)kept;
    return started * each * sizeof(Vector);
}
