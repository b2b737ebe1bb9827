// Memory for a thread's intermediate results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace tts {

// 64-byte-aligned memory that only grows; each thread keeps its own between calls.
class Scratch {
 public:
  uint32_t* reserve(size_t words) {
    if (words > size_) {
      data_.reset();
      size_ = 0;
      data_.reset(static_cast<uint32_t*>(::operator new(words * sizeof(uint32_t), std::align_val_t{64})));
      size_ = words;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(uint32_t* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<uint32_t, Free> data_;
  size_t size_ = 0;
};

}  // namespace tts
