// Shares work among the threads that the process already has.
#pragma once

#include <cstdint>
#include <functional>

namespace tts {

// Calls body(i) once for each i in [0, n) on at most num_threads threads; a free thread takes the next i. The
// assignment to threads is unspecified. The first exception from a body stops further work and is rethrown
// here.
//
// After a torch op, its OpenMP threads spin for a while, and a second pool would compete with them for cores.
// So if an OpenMP runtime is loaded, its threads do the work. Otherwise, and in the child of a fork, threads
// are started for the call.
void parallel_for(int num_threads, int64_t n, const std::function<void(int64_t)>& body);

// "libgomp.so.1", "libiomp5.so", ... or "std::thread".
const char* parallel_backend();

}  // namespace tts
