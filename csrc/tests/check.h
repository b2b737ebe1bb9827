// A minimal test harness: CHECK prints what failed and where, and main returns failures().
#pragma once

#include <cstdio>

namespace tts::test {

inline int& failures() {
  static int count = 0;
  return count;
}

}  // namespace tts::test

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
      ++tts::test::failures();                                                    \
    }                                                                             \
  } while (false)

#define CHECK_THROWS(expression, Exception)                                                              \
  do {                                                                                                   \
    bool thrown = false;                                                                                 \
    try {                                                                                                \
      static_cast<void>(expression);                                                                     \
    } catch (const Exception&) {                                                                         \
      thrown = true;                                                                                     \
    }                                                                                                    \
    if (!thrown) {                                                                                       \
      std::fprintf(stderr, "%s:%d: %s did not throw %s\n", __FILE__, __LINE__, #expression, #Exception); \
      ++tts::test::failures();                                                                           \
    }                                                                                                    \
  } while (false)
