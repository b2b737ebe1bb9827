// Integers in 128-bit compiler vectors, for use beside a `Vec` of four floats; runs on any CPU. Integers
// below 2^24 are exact as floats, so products and sums of integers use floats.
#pragma once

struct Ints {
  typedef uint32_t I __attribute__((vector_size(16)));
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  static constexpr bool kBySize = false;
  static constexpr int kRows = 2;

  static I set1(int x) {
    const auto word = static_cast<uint32_t>(x);
    return I{word, word, word, word};
  }
  static I load(const void* p) {
    I x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  static void store(void* p, I x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static I both(I a, I b) { return a & b; }
  static I either(I a, I b) { return a | b; }
  static I shifted_left(I x, int n) { return x << n; }
  static I shifted_right(I x, int n) { return x >> n; }
  static I load_table(const uint8_t* table) { return load(table); }
  static I look_up(I table, I indices) {
    const Bytes entries = (Bytes)table, places = (Bytes)indices;
    Bytes found;
    for (int i = 0; i < 16; ++i) found[i] = entries[places[i] & 15];
    return (I)found;
  }

  // Moves the bits of a float16 into a float, which is 2^112 times as large.
  static Vec::F widen_float16(const void* p) {
    const I halves = widen(p), magnitude = (halves & 0x7fffu) << 13;
    const I scaled = (I)((Floats)magnitude * Floats{0x1p112f, 0x1p112f, 0x1p112f, 0x1p112f});
    const I special = (I)(magnitude >= 0x0f800000u) & 0x7f800000u;  // infinity or NaN
    return (Vec::F)(scaled | special | (halves & 0x8000u) << 16);
  }
  static Vec::F widen_bfloat16(const void* p) { return (Vec::F)(widen(p) << 16); }

  using Sum = Vec::F;
  static uint32_t start_word(float start) {
    uint32_t word;
    __builtin_memcpy(&word, &start, sizeof(word));
    return word;
  }
  static Sum start(const uint32_t* word) { return Vec::broadcast(word); }
  static Vec::F floats(Sum sum) { return sum; }

  static constexpr int kXWords = 4;  // per four inputs of x: floats
  template <int kMost>
  struct Dot {
    static constexpr bool kSigned = false;
    static constexpr int kTogether = 8;
    struct Operand {
      Vec::F byte[4];
    };
    using Part = Sum;
    static Operand operand(I u) { return {{bytes(u), bytes(u >> 8), bytes(u >> 16), bytes(u >> 24)}}; }
    static Part begin(Sum sum) { return sum; }
    static Part add(Part sum, Operand u, const uint32_t* x) {
      for (int i = 0; i < 4; ++i) sum = Vec::fma(u.byte[i], Vec::broadcast(x + i), sum);
      return sum;
    }
    static Sum end(Sum, Part part) { return part; }
  };
  // Stores 4 integers of x, from index i of the group on.
  static void store_x(Vec::F x, int i, uint32_t* out) { Vec::store(out + i, x); }

 private:
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Signed __attribute__((vector_size(16)));
  static I widen(const void* p) {
    uint16_t halves __attribute__((vector_size(8)));
    __builtin_memcpy(&halves, p, sizeof(halves));
    return __builtin_convertvector(halves, I);
  }
  static Vec::F bytes(I u) { return (Vec::F) __builtin_convertvector((Signed)(u & 0xffu), Floats); }
};
