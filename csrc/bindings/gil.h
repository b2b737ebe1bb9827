// Releases the GIL while a kernel runs, safely at the exit of the interpreter.
//
// A daemon thread that asks for the GIL of an interpreter which is going away is ended by the interpreter
// (CPython below 3.14: pthread_exit). That unwinds C++ frames that must not be unwound, torch's and
// pybind11's, and the process aborts. So before the interpreter goes away, tts_kernels/shutdown.py calls
// `park_threads`: from then on every other thread that begins or ends a kernel call sleeps for good, without
// the GIL.
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

// All threads but the calling one are parked from now on.
void park_threads();

// Those that have called a kernel and are not parked, ended ones included; as threading.get_ident gives them.
std::set<unsigned long> unparked_threads();

}  // namespace tts
