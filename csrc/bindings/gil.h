// Releases the GIL while a kernel runs, and stays safe while the interpreter exits.
//
// An exiting interpreter ends any daemon thread that requests the GIL (CPython below 3.14: pthread_exit).
// This unwinds frames of torch and pybind11 that must not be unwound, and the process aborts. Therefore
// tts_kernels/shutdown.py calls `park_threads` before the interpreter exits: from then on every other thread
// that begins or ends a kernel call sleeps forever, without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <set>

namespace tts {

class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// From now on, parks every thread except the calling one.
void park_threads();

// Ids (threading.get_ident) of threads that have called a kernel and are not parked, including ended threads.
std::set<unsigned long> unparked_threads();

}  // namespace tts
