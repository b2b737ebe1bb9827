#include "cpu/runtime/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#endif

namespace tts {
namespace {

// The entry point that GCC's OpenMP code calls; LLVM's and Intel's runtimes export it too.
using GompParallel = void (*)(void (*function)(void*), void* data, unsigned num_threads, unsigned flags);

struct Backend {
  std::string name;
  GompParallel gomp_parallel = nullptr;
};

#if defined(__linux__)
int visit_library(dl_phdr_info* info, size_t, void* found) {
  const std::string path = info->dlpi_name;
  const std::string name = path.substr(path.find_last_of('/') + 1);
  for (const char* runtime : {"libgomp", "libiomp5", "libomp"}) {
    if (name.rfind(runtime, 0) == 0) {
      *static_cast<std::string*>(found) = path;
      return 1;  // stop: the first one loaded is torch's
    }
  }
  return 0;
}

Backend find_backend() {
  Backend backend;
  std::string path;
  dl_iterate_phdr(visit_library, &path);
  // The handle is never closed: the runtime's threads live as long as the process.
  void* library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return backend;
  backend.gomp_parallel = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  if (backend.gomp_parallel != nullptr) backend.name = path.substr(path.find_last_of('/') + 1);
  return backend;
}
#else
Backend find_backend() { return {}; }
#endif

const Backend& backend() {
  static const Backend found = find_backend();
  return found;
}

// After a fork, an OpenMP runtime's threads stay in the parent, and the runtime in the child would wait for
// them forever. The child starts its own threads.
std::atomic<bool> forked{false};

bool on_openmp_threads() { return backend().gomp_parallel != nullptr && !forked; }

#if defined(__linux__)
[[maybe_unused]] const int kForkHandler = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

struct Job {
  Job(const std::function<void(int64_t)>& body, int64_t n) : body(body), n(n) {}

  const std::function<void(int64_t)>& body;
  int64_t n;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // written by the thread that set `failed`, read after all have finished
};

// Runs on every thread. No exception may escape, as an OpenMP runtime has no frame to catch it.
void work(void* data) {
  Job& job = *static_cast<Job*>(data);
  try {
    for (int64_t i = job.next++; i < job.n; i = job.next++) job.body(i);
  } catch (...) {
    job.next = job.n;
    if (!job.failed.exchange(true)) job.error = std::current_exception();
  }
}

void run_on_own_threads(Job& job, int num_threads) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(num_threads));
  try {
    for (int i = 1; i < num_threads; ++i) threads.emplace_back(work, &job);
  } catch (const std::system_error&) {
    // The system grants no more threads: the existing ones do all the work.
  }
  work(&job);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void parallel_for(int num_threads, int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 0) return;
  const int threads = static_cast<int>(std::min<int64_t>(std::max(num_threads, 1), n));
  Job job(body, n);
  if (threads == 1) {
    work(&job);
  } else if (on_openmp_threads()) {
    backend().gomp_parallel(work, &job, static_cast<unsigned>(threads), 0);
  } else {
    run_on_own_threads(job, threads);
  }
  if (job.error) std::rethrow_exception(job.error);
}

const char* parallel_backend() { return on_openmp_threads() ? backend().name.c_str() : "std::thread"; }

}  // namespace tts
