// Work sharing on the threads that the process already has.
#pragma once

#include <cstdint>
#include <functional>

namespace tts {

// Calls body(i) once for each i in [0, n), taking the next i whenever a thread is free, on at most
// num_threads threads. Which thread runs what is not defined. The first exception of a body stops the handing
// out of further work and is rethrown here.
//
// After a torch op its OpenMP threads spin for a while; a second pool would fight them for the cores. So
// where an OpenMP runtime is loaded its threads do the work, and only elsewhere threads are started for the
// call, as in the child of a fork.
void parallel_for(int num_threads, int64_t n, const std::function<void(int64_t)>& body);

// "libgomp.so.1", "libiomp5.so", ... or "std::thread".
const char* parallel_backend();

}  // namespace tts
