#include "bindings/gil.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

namespace tts {
namespace {

struct Parking {
  std::atomic<unsigned long> open_to{0};  // the only thread that may continue; 0: all may
  std::mutex mutex;
  std::set<unsigned long> unparked;  // guarded by mutex
};

// Never destroyed: threads may still read it while the process exits.
Parking& parking() {
  static Parking* const instance = new Parking;
  return *instance;
}

void park_if_closed() {
  Parking& lot = parking();
  const unsigned long open_to = lot.open_to.load();
  if (open_to == 0 || open_to == PyThread_get_thread_ident()) return;
  {
    const std::lock_guard lock(lot.mutex);
    lot.unparked.erase(PyThread_get_thread_ident());
  }
  // Not std::condition_variable: with GCC 12 its wait() makes wheels unusable on glibc 2.34 (RHEL 9).
  for (;;) std::this_thread::sleep_for(std::chrono::hours(24));
}

void enlist() {
  thread_local bool enlisted = false;
  if (enlisted) return;
  const std::lock_guard lock(parking().mutex);
  parking().unparked.insert(PyThread_get_thread_ident());
  enlisted = true;
}

}  // namespace

GilRelease::GilRelease() {
  enlist();
  state_ = PyEval_SaveThread();
  park_if_closed();
}

GilRelease::~GilRelease() {
  park_if_closed();
  PyEval_RestoreThread(state_);
}

void park_threads() { parking().open_to = PyThread_get_thread_ident(); }

std::set<unsigned long> unparked_threads() {
  Parking& lot = parking();
  const std::lock_guard lock(lot.mutex);
  return lot.unparked;
}

}  // namespace tts
