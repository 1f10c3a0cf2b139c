#include "program/check.h"

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "integers/packed.h"
#include "program/op_list.h"

namespace hedgerow {
namespace {

constexpr int64_t kMaxExtent = (int64_t{1} << 31) - 1;
// Of positions in an image: a few of these can be added in 32 bits.
constexpr int64_t kMaxGeometry = int64_t{1} << 28;
constexpr int64_t kOverflow = INT64_MAX;

int64_t Times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? kOverflow : product;
}

int64_t Plus(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? kOverflow : sum;
}

// The numbers that a list's letters stand for.
struct Numbers {
  int64_t of[128] = {};
  int64_t item_bytes = 0;
  int64_t arena_bytes;
  int64_t& operator[](char letter) { return of[static_cast<int>(letter)]; }
};

using Rule = const char* (*)(const Op&, Numbers&);

const char* Any(const Op&, Numbers&) { return nullptr; }

// One axis of a window that slides over an image: sets the number of its places.
const char* Slide(int64_t image, int64_t kernel, int64_t stride, int64_t padding, int64_t& places) {
  for (int64_t value : {image, kernel, stride, padding}) {
    if (value > kMaxGeometry) return "an image, kernel, stride or padding is too large";
  }
  if (kernel > image + 2 * padding) return "the kernel is larger than the padded image";
  places = (image + 2 * padding - kernel) / stride + 1;
  return nullptr;
}

const char* Window(Numbers& n) {
  const char* why = Slide(n['H'], n['k'], n['s'], n['p'], n['h']);
  return why ? why : Slide(n['W'], n['l'], n['t'], n['q'], n['w']);
}

const char* Conv(const Op&, Numbers& n) {
  if (n['O'] % n['g'] != 0) return "the output channels are not a multiple of groups";
  n['d'] = n['C'] / n['g'];
  return Window(n);
}

const char* MaxPool(const Op&, Numbers& n) {
  if (Times(n['k'], n['l']) > 255) return "a window of more than 255 places";
  if (2 * n['p'] > n['k'] || 2 * n['q'] > n['l']) return "padding of more than half the window";
  return Window(n);
}

const char* AvgPool(const Op&, Numbers& n) { return Window(n); }

// What a result of an integer op is clamped to.
const char* BoundsS8(const Op&, Numbers& n) {
  return n['a'] > n['b'] ? "a lowest byte above the highest" : nullptr;
}

const char* PackedConv(Numbers& n, int64_t rows, int64_t depth) {
  // First each alone: then their product fits.
  if (depth > kMostProducts || rows > kMostProducts / depth) return "a sum of more products than 32 bits can hold";
  n['d'] = Times(Blocks(n['O']), ConvBlockBytes(rows, depth));
  return BoundsS8({}, n);
}

const char* ConvS8(const Op&, Numbers& n) {
  const char* why = PackedConv(n, n['k'], Times(n['l'], n['C']));
  return why ? why : Window(n);
}

const char* LinearS8(const Op&, Numbers& n) { return PackedConv(n, 1, n['K']); }

const char* DepthwiseS8(const Op&, Numbers& n) {
  const int64_t places = Times(n['k'], n['l']);
  if (places > kMostPlaces) return "a window of more than 2048 places";
  n['d'] = Times(Blocks(n['C']), DepthwiseBlockBytes(places));
  const char* why = BoundsS8({}, n);
  return why ? why : Window(n);
}

const char* MaxPoolS8(const Op&, Numbers& n) {
  if (2 * n['p'] > n['k'] || 2 * n['q'] > n['l']) return "padding of more than half the window";
  const char* why = BoundsS8({}, n);
  return why ? why : Window(n);
}

const char* AvgPoolS8(const Op&, Numbers& n) {
  // Of differences of bytes, each below 256.
  if (Times(n['k'], n['l']) > (int64_t{1} << 23) - 1) return "a window of too many places for 32 bits";
  const char* why = BoundsS8({}, n);
  return why ? why : Window(n);
}

const char* LookupS8(const Op&, Numbers& n) {
  n['r'] = 256;
  return nullptr;
}

// A shape of up to six extents; entries past `rank` are 0 (or 1), and so are their strides.
struct Shape {
  int64_t rank;
  const int64_t* extents;

  const char* Fault() const {
    if (rank < 0 || rank > 6) return "a rank that is not 0 to 6";
    for (int i = 0; i < 6; ++i) {
      if (i < rank ? extents[i] < 1 || extents[i] > kMaxExtent : extents[i] != 0 && extents[i] != 1) {
        return "an extent of the shape is out of range";
      }
    }
    return nullptr;
  }
  int64_t Elements() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product = Times(product, extents[i]);
    return product;
  }
  const char* StridesFault(const int64_t* strides) const {
    for (int i = 0; i < 6; ++i) {
      if (strides[i] < 0 || (i >= rank && strides[i] != 0)) return "a stride is out of range";
    }
    return nullptr;
  }
  // One past the last element that an index of this shape reaches.
  int64_t Reach(const int64_t* strides, int64_t first) const {
    int64_t last = first;
    for (int i = 0; i < rank; ++i) last = Plus(last, Times(extents[i] - 1, strides[i]));
    return Plus(last, 1);
  }
};

const char* Copy(const Op& op, Numbers& n) {
  const Shape shape{op.ints[1], op.ints + 2};
  const int64_t *xs = op.ints + 8, *ys = op.ints + 14, x0 = op.ints[20], y0 = op.ints[21];
  if (op.ints[0] != 1 && op.ints[0] != 4 && op.ints[0] != 8) return "items that are not of 1, 4 or 8 bytes";
  if (const char* why = shape.Fault()) return why;
  if (const char* why = shape.StridesFault(xs)) return why;
  if (const char* why = shape.StridesFault(ys)) return why;
  if (x0 < 0 || y0 < 0) return "a negative place";
  // Strides of 0 could make a long loop over a small arena.
  if (shape.Elements() > n.arena_bytes) return "a shape larger than the arena";
  n.item_bytes = op.ints[0];
  n['x'] = shape.Reach(xs, x0);
  n['y'] = shape.Reach(ys, y0);
  return nullptr;
}

const char* Reduce(const Op& op, Numbers& n) {
  const Shape shape{op.ints[0], op.ints + 1};
  const int64_t* ys = op.ints + 7;
  if (const char* why = shape.Fault()) return why;
  if (const char* why = shape.StridesFault(ys)) return why;
  n['x'] = shape.Elements();
  n['y'] = 1;
  for (int i = static_cast<int>(shape.rank) - 1; i >= 0; --i) {
    if (ys[i] == 0) continue;
    if (ys[i] != n['y']) return "strides that do not make y contiguous";
    n['y'] = Times(n['y'], shape.extents[i]);
  }
  return nullptr;
}

const char* Binary(const Op& op, Numbers& n) {
  const Shape shape{op.ints[1], op.ints + 2};
  if (op.ints[0] < 0 || op.ints[0] > 1 || op.ints[20] < 0 || op.ints[20] > 2) return "an unknown kind";
  if (const char* why = shape.Fault()) return why;
  if (const char* why = shape.StridesFault(op.ints + 8)) return why;
  if (const char* why = shape.StridesFault(op.ints + 14)) return why;
  n['a'] = shape.Reach(op.ints + 8, 0);
  n['b'] = shape.Reach(op.ints + 14, 0);
  n['y'] = shape.Elements();
  return nullptr;
}

const char* FakeQuant(const Op&, Numbers& n) { return n['b'] < 2 ? "integers of less than 2 bits" : nullptr; }

struct Row {
  const char *name, *ints, *buffers, *floats;
  Rule rule;
};

constexpr Row kRows[] = {
#define HEDGEROW_ROW(name, ints, buffers, floats, rule) {#name, ints, buffers, floats, rule},
    HEDGEROW_OPS(HEDGEROW_ROW)
#undef HEDGEROW_ROW
};

const char* NextToken(const char* text) {
  text += std::strcspn(text, " ");
  return text + std::strspn(text, " ");
}

// Reads the ints into `numbers`; returns why not.
const char* CheckInts(const char* text, const Op& op, Numbers& numbers) {
  int used = 0;
  for (; *text; text = NextToken(text)) {
    if (*text == '#') {
      used = (text[1] - '0') * 10 + (text[2] - '0');
      break;
    }
    const int64_t value = op.ints[used++];
    numbers[text[0]] = value;
    switch (text[1]) {
      case '~': continue;
      case '<':
        if (value < 0 || value >= text[2] - '0') return "a kind or a switch is out of range";
        continue;
      case '*':
        if (value < 0 || value > kMaxGeometry) return "a padding or a number of an op is out of range";
        continue;
      case '@':
        if (value < -128 || value > 127) return "a signed byte is out of range";
        continue;
    }
    if (value < 1 || value > kMaxExtent) return "an extent is out of range";
  }
  for (; used < kMaxInts; ++used) {
    if (op.ints[used] != 0) return "an int that the op does not use is not 0";
  }
  return nullptr;
}

// B|N: only once every int has been read, for N may come after B.
const char* CheckDivisors(const char* text, Numbers& numbers) {
  for (; *text; text = NextToken(text)) {
    if (text[1] == '|' && numbers[text[2]] % numbers[text[0]] != 0) return "an extent is not a multiple of its parts";
  }
  return nullptr;
}

const char* CheckBuffer(const char* token, int64_t offset, Numbers& numbers) {
  int64_t item_bytes = 4, alignment = 0, items = 1;
  bool optional = false;
  for (; *token != '='; ++token) {
    if (*token == '?') optional = true;
    if (std::strncmp(token, ":packed", 7) == 0) {
      item_bytes = 1;
      alignment = kPackedAlignment;
      continue;
    }
    if (*token == ':') item_bytes = token[1] == 'u' ? 1 : std::strncmp(token, ":item", 5) ? 8 : numbers.item_bytes;
  }
  if (offset == -1) return optional ? nullptr : "a buffer is missing";
  while (*++token && *token != ' ') {
    items = Times(items, *token >= '0' && *token <= '9' ? *token - '0' : numbers[*token]);
  }
  if (offset < 0 || offset % (alignment ? alignment : item_bytes) != 0) return "a buffer is negative or misaligned";
  const int64_t end = Plus(offset, Times(items, item_bytes));
  return end > numbers.arena_bytes ? "a buffer ends past the arena" : nullptr;
}

const char* CheckBuffers(const char* text, const Op& op, Numbers& numbers) {
  int used = 0;
  for (; *text; text = NextToken(text)) {
    if (const char* why = CheckBuffer(text, op.buffers[used++], numbers)) return why;
  }
  for (; used < kMaxBuffers; ++used) {
    if (op.buffers[used] != -1) return "a buffer that the op does not use is not -1";
  }
  return nullptr;
}

const char* CheckFloats(const char* text, const Op& op) {
  int used = 0;
  for (; *text; text = NextToken(text)) {
    if (!std::isfinite(op.floats[used++])) return "a float is not finite";
  }
  for (; used < kMaxFloats; ++used) {
    if (op.floats[used] != 0) return "a float that the op does not use is not 0";
  }
  return nullptr;
}

}  // namespace

int32_t CodeOf(const char* name) {
  for (int code = 0; code < kCodes; ++code) {
    if (std::strcmp(kRows[code].name, name) == 0) return code;
  }
  return -1;
}

const char* Check(const Op& op, int64_t arena_bytes) {
  if (op.code < 0 || op.code >= kCodes) return "an unknown code";
  if (op.reserved != 0) return "reserved is not 0";
  const Row& row = kRows[op.code];
  Numbers numbers;
  numbers.arena_bytes = arena_bytes;
  if (const char* why = CheckInts(row.ints, op, numbers)) return why;
  if (const char* why = CheckDivisors(row.ints, numbers)) return why;
  if (const char* why = row.rule(op, numbers)) return why;
  if (const char* why = CheckBuffers(row.buffers, op, numbers)) return why;
  return CheckFloats(row.floats, op);
}

}  // namespace hedgerow
