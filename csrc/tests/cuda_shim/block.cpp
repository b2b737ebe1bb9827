#include "tests/cuda_shim/block.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx;

namespace tts::shim {

bool reverse_order = false;

namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 << 10;

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Warp {
  alignas(kSlotBytes) unsigned char slots[2][kLanes][kSlotBytes];  // of meetings in turn: a lane may be one
                                                                   // ahead of the others
  const char* instruction = nullptr;
  int arrived = 0;
  uint64_t meetings = 0;  // completed so far
};

struct Fiber {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  ucontext_t context;
  void* fake_stack = nullptr;  // AddressSanitizer's
  uint64_t meeting = 0;        // the one it waits for, or was in last
  uint64_t barrier = 0;
  bool done = false;
  std::vector<std::vector<Copy>> copies;  // by group; the last one is not committed
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Fiber* running = nullptr;
  size_t arrived = 0;     // number at the barrier
  uint64_t barriers = 0;  // completed so far
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  const std::function<void()>* kernel = nullptr;
  ucontext_t scheduler;
  void* fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
} block;

// Tells AddressSanitizer about a stack switch, as it requires. `keep` is null if the stack is left for good.
void leave_stack([[maybe_unused]] void** keep, [[maybe_unused]] const void* to,
                 [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(keep, to, bytes);
#endif
}
void enter_stack([[maybe_unused]] void* kept, [[maybe_unused]] const void** from,
                 [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(kept, from, bytes);
#endif
}

void suspend() {
  Fiber& fiber = *block.running;
  leave_stack(&fiber.fake_stack, block.scheduler_stack, block.scheduler_stack_bytes);
  swapcontext(&fiber.context, &block.scheduler);
  enter_stack(fiber.fake_stack, nullptr, nullptr);
}

void run_thread() {
  enter_stack(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
  (*block.kernel)();
  block.running->done = true;
  leave_stack(nullptr, block.scheduler_stack, block.scheduler_stack_bytes);
  setcontext(&block.scheduler);
}

void resume(Fiber& fiber, unsigned thread) {
  block.running = &fiber;
  threadIdx = thread;
  leave_stack(&block.fake_stack, fiber.stack.get(), kStackBytes);
  swapcontext(&block.scheduler, &fiber.context);
  enter_stack(block.fake_stack, nullptr, nullptr);
}

void start(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStackBytes);  // frames of the previous thread
#endif
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.context, run_thread, 0);
  fiber.context.uc_stack = {};  // else AddressSanitizer slowly clears the whole stack's state at each switch
  fiber.meeting = fiber.barrier = 0;
  fiber.done = false;
  fiber.copies.assign(1, {});
}

// Runs a warp's lanes until each has ended or waits for another warp; false if none could run.
bool run_warp(size_t warp) {
  bool ran = false;
  for (bool again = true; again;) {
    again = false;
    for (size_t i = warp * kLanes; i < (warp + 1) * kLanes; ++i) {
      Fiber& fiber = block.fibers[i];
      if (fiber.done || fiber.meeting > block.warps[warp].meetings || fiber.barrier > block.barriers)
        continue;
      resume(fiber, static_cast<unsigned>(i));
      again = ran = true;
    }
  }
  return ran;
}

void run_block() {
  const size_t warps = block.warps.size();
  std::memset(block.shared, 0xff, block.shared_bytes);  // all NaN
  block.warps.assign(warps, {});
  block.arrived = block.barriers = 0;
  for (Fiber& fiber : block.fibers) start(fiber);
  for (bool ran = true; ran;) {
    ran = false;
    for (size_t i = 0; i < warps; ++i) ran |= run_warp(reverse_order ? warps - 1 - i : i);
  }
  for (const Fiber& fiber : block.fibers) {
    if (!fiber.done) fail("threads wait for others that have ended or wait elsewhere");
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "block (%u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y, threadIdx.x, what);
  std::abort();
}

void run_grid(dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  const std::align_val_t alignment{128};
  block.shared = static_cast<unsigned char*>(::operator new(shared_bytes, alignment));
  block.shared_bytes = shared_bytes;
  block.kernel = &kernel;
  block.fibers.resize(threads);
  block.warps.resize(threads / kLanes);
  const unsigned blocks = grid.x * grid.y;
  for (unsigned i = 0; i < blocks; ++i) {
    const unsigned index = reverse_order ? blocks - 1 - i : i;
    blockIdx = dim3(index % grid.x, index / grid.x);
    run_block();
  }
  ::operator delete(block.shared, alignment);
}

unsigned char* shared_memory() { return block.shared; }

bool in_shared_memory(const void* address, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(address);
  return at >= block.shared && at + bytes <= block.shared + block.shared_bytes;
}

void copy_async(void* to, const void* from, bool valid) {
  if (!in_shared_memory(to, 16) || reinterpret_cast<uintptr_t>(to) % 16 ||
      reinterpret_cast<uintptr_t>(from) % 16) {
    fail("cp.async: an address that is not aligned, or not in shared memory");
  }
  std::memset(to, 0xff, 16);
  block.running->copies.back().push_back({to, from, valid});
}

void commit_copies() { block.running->copies.emplace_back(); }

void wait_for_copies(int pending_groups) {
  auto& groups = block.running->copies;
  const auto end = groups.end() - 1 - std::min<ptrdiff_t>(pending_groups, std::ssize(groups) - 1);
  for (auto group = groups.begin(); group != end; ++group) {
    for (const Copy& copy : *group) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
  }
  groups.erase(groups.begin(), end);
}

const unsigned char* meet(const char* instruction, const void* mine, size_t bytes) {
  Fiber& fiber = *block.running;
  Warp& warp = block.warps[threadIdx.x / kLanes];
  auto& slots = warp.slots[fiber.meeting % 2];
  std::memcpy(slots[threadIdx.x % kLanes], mine, bytes);
  ++fiber.meeting;
  if (warp.arrived++ == 0) warp.instruction = instruction;
  if (std::strcmp(warp.instruction, instruction) != 0) fail("lanes of a warp meet in different instructions");
  if (warp.arrived == kLanes) {
    warp.arrived = 0;
    ++warp.meetings;
  } else {
    suspend();
  }
  return slots[0];
}

}  // namespace tts::shim

void __syncthreads() {
  using tts::shim::block;
  ++block.running->barrier;
  if (++block.arrived == block.fibers.size()) {
    block.arrived = 0;
    ++block.barriers;
  } else {
    tts::shim::suspend();
  }
}
