// Exceptions that cross into Python. The bindings translate each to its Python counterpart, so C++ never
// aborts the process and a message reaches the user as written: argument, what it got, what was expected.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tts {

// Python: ValueError.
struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Python: tts_kernels.CapacityError, a ValueError. The previous plan is unchanged.
struct CapacityError : ArgumentError {
  using ArgumentError::ArgumentError;
};

// Python: tts_kernels.OutOfPagesError. Thrown before anything is written.
struct OutOfPagesError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// require(ok, "at: got ", at, ", expected 0 <= at <= ", length, "; ...")
template <class... Parts>
void require(bool ok, const Parts&... parts) {
  if (!ok) throw ArgumentError(concat(parts...));
}

}  // namespace tts
