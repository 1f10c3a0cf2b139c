// Runs the kernels of c_api_arrays.h and c_api_context.h, and a Program's ops on signed bytes, on made-up arrays, on
// every ISA of this CPU, and prints one digest a family of all that they wrote. The digests of every ISA, CPU and
// architecture are the same: one that differs is a wrong kernel, and the exit code then is 1. Inputs end where a page
// that nobody may touch begins, so a read past one's end is a crash.
//
// Build it with the core's own sources, statically for an emulator without a system root (`-cpu cortex-a53` and others).
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "c_api_arrays.h"
#include "c_api_context.h"
#include "program/ops.h"

namespace {

uint64_t state;
uint64_t Random() {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

uint64_t digest;
void Take(const void* p, size_t bytes) {  // FNV-1a
  for (size_t i = 0; i < bytes; ++i) digest = (digest ^ static_cast<const uint8_t*>(p)[i]) * 0x100000001b3u;
}

// n elements in front of a page that may not be touched, `fill` everywhere at first.
template <typename T>
class Array {
 public:
  explicit Array(size_t n, uint8_t fill = 0xa5) : size_(n) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = (n * sizeof(T) + page - 1) / page * page;
    mapped_ = bytes + page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    std::memset(base_, fill, bytes);
    mprotect(base_ + bytes, page, PROT_NONE);
    data_ = reinterpret_cast<T*>(base_ + bytes) - n;
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { munmap(base_, mapped_); }

  Array& Randomise() {
    for (size_t i = 0; i < size_; ++i) data_[i] = static_cast<T>(Random());
    return *this;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return size_; }
  void TakeAll() const { Take(data_, size_ * sizeof(T)); }

 private:
  uint8_t* base_;
  T* data_;
  size_t size_, mapped_;
};

// A third of the floats of any bits, a third that rounds, a third of ties; NaNs only if asked for.
void Floats(Array<float>& x, bool nan) {
  for (size_t i = 0; i < x.size(); ++i) {
    const uint64_t bits = Random();
    const auto pattern = static_cast<uint32_t>(bits);
    switch (bits >> 32 & 3) {
      case 0:
        std::memcpy(&x[i], &pattern, sizeof pattern);
        if (!nan && x[i] != x[i]) x[i] = 1;
        break;
      case 1:
        x[i] = static_cast<float>(static_cast<int32_t>(pattern)) * 1e-7f;
        break;
      default:
        x[i] = static_cast<float>(static_cast<int32_t>(pattern % 600) - 300) * 0.5f;
    }
  }
}

void Gemm() {
  for (size_t i = 0; i < 150; ++i) {
    const size_t m = Random() % 20, n = Random() % 40, k = i % 10 ? Random() % 70 : 1000 + Random() % 1100;
    Array<int8_t> a(m * k), b(n * k), packed(hr_gemm_s8_pack_bytes(n, k));
    if (i % 7) a.Randomise(), b.Randomise();
    else std::memset(a.data(), 0x80, m * k), std::memset(b.data(), 0x80, n * k);
    Array<int32_t> c(m * n);
    if (hr_gemm_s8_pack(n, k, b.data(), packed.data(), packed.size()) != 0) std::abort();
    if (hr_gemm_s8(m, n, k, a.data(), packed.data(), c.data()) != 0) std::abort();
    c.TakeAll();
  }
}

void Quantize() {
  for (size_t i = 0; i < 200; ++i) {
    const size_t rows = Random() % 5, columns = Random() % 70;
    Array<float> x(rows * columns), scale(rows), low(rows), high(rows), real(rows * columns);
    Array<int8_t> zero(rows), q(rows * columns);
    Floats(x, true);
    for (size_t r = 0; r < rows; ++r) scale[r] = static_cast<float>(1 + Random() % 1000) * 0.01f;
    zero.Randomise();
    hr_quantize_s8(rows, columns, x.data(), scale.data(), zero.data(), q.data());
    q.TakeAll();
    hr_dequantize_s8(rows, columns, q.data(), scale.data(), zero.data(), real.data());
    real.TakeAll();
    hr_range_f32(rows, columns, x.data(), low.data(), high.data());
    low.TakeAll(), high.TakeAll();
  }
}

void Requantize() {
  for (size_t i = 0; i < 200; ++i) {
    const size_t rows = Random() % 5, columns = Random() % 70;
    Array<int32_t> sum(rows * columns), bias(rows + columns);
    Array<float> multiplier(rows + columns);
    Array<int8_t> q(rows * columns);
    sum.Randomise(), bias.Randomise();
    for (size_t j = 0; j < sum.size(); ++j) sum[j] >>= Random() % 32;
    for (size_t j = 0; j < multiplier.size(); ++j) multiplier[j] = static_cast<float>(Random() % 4096) / 4096;
    const auto zero = static_cast<int8_t>(Random());
    const int32_t* plus = i % 2 ? bias.data() : nullptr;
    hr_requantize_rows_s8(rows, columns, sum.data(), plus, multiplier.data(), zero, q.data());
    q.TakeAll();
    hr_requantize_columns_s8(rows, columns, sum.data(), plus, multiplier.data(), zero, q.data());
    q.TakeAll();
  }
}

void PackBits() {
  for (uint32_t width = 1; width <= 32; ++width) {
    for (size_t n = 0; n < 40; ++n) {
      Array<uint32_t> values(n), back(n);
      Array<uint8_t> bytes(hr_packed_bytes(n, width));
      hr_pack_u32(n, width, values.Randomise().data(), bytes.data());
      hr_unpack_u32(n, width, bytes.data(), back.data());
      bytes.TakeAll(), back.TakeAll();
      if (width > 8) continue;
      Array<uint8_t> small(n), again(n);
      hr_pack_u8(n, width, small.Randomise().data(), bytes.data());
      hr_unpack_u8(n, width, bytes.data(), again.data());
      bytes.TakeAll(), again.TakeAll();
    }
  }
}

void MaskAdd() {
  for (size_t n = 0; n < 70; ++n) {
    Array<uint64_t> wide(n), wide_mask(n);
    Array<uint32_t> narrow(n), narrow_mask(n);
    wide.Randomise(), wide_mask.Randomise(), narrow.Randomise(), narrow_mask.Randomise();
    for (int twice = 0; twice < 2; ++twice) {
      hr_add_u64(n, wide_mask.data(), wide.data());
      wide.TakeAll();
      hr_add_u32_to_u64(n, narrow_mask.data(), wide.data());
      wide.TakeAll();
      hr_add_u32(n, narrow_mask.data(), narrow.data());
      narrow.TakeAll();
    }
    hr_subtract_u64(n, wide_mask.data(), wide.data());
    hr_subtract_u32_from_u64(n, narrow_mask.data(), wide.data());
    hr_subtract_u32(n, narrow_mask.data(), narrow.data());
    wide.TakeAll(), narrow.TakeAll();
  }
}

void Topk() {
  for (size_t i = 0; i < 200; ++i) {
    const size_t n = i % 50 ? 1 + Random() % 300 : 70000, k = 1 + Random() % n;
    Array<float> x(n), values(k), threshold(1);
    Array<uint32_t> indices(k);
    Floats(x, i % 3 == 0);
    const int32_t status = hr_kth_magnitude(n, x.data(), k, threshold.data());
    if (status != 0) threshold[0] = 10;
    Take(&status, sizeof status), threshold.TakeAll();
    const uint64_t count = hr_count_at_least(n, x.data(), threshold[0]);
    const uint64_t taken = hr_take_at_least(n, x.data(), threshold[0], k, indices.data(), values.data());
    Take(&count, sizeof count), Take(&taken, sizeof taken);
    Take(indices.data(), taken * sizeof(uint32_t)), Take(values.data(), taken * sizeof(float));
  }
}

void LowRank() {
  for (size_t i = 0; i < 60; ++i) {
    const size_t rows = Random() % 9, columns = Random() % 90, rank = Random() % 12;
    Array<float> a(rank * rows), b(rank * columns), y(rows * columns);
    for (Array<float>* x = &a; x; x = x == &a ? &b : nullptr) {
      for (size_t j = 0; j < x->size(); ++j) (*x)[j] = static_cast<float>(static_cast<int32_t>(Random())) * 1e-5f;
    }
    hr_low_rank_product(rows, columns, rank, a.data(), b.data(), y.data());
    y.TakeAll();
  }
}

// A plane is written and read back; then what any bytes decode to.
void Context() {
  Array<uint64_t> state((hr_context_state_bytes() + 7) / 8);
  for (size_t i = 0; i < 60; ++i) {
    const size_t rows = Random() % 9, columns = Random() % 90, lag = i % 3 ? 3 + Random() % 20 : 0;
    const auto kind = static_cast<int32_t>(i & 1);
    const int32_t size = i % 4 ? 1 + static_cast<int32_t>(Random() % 12) : 32767;
    Array<float> x(rows * columns), levels(rows * columns);
    Array<int16_t> q(rows * columns), back(rows * columns);
    Array<uint8_t> classes(rows), workspace(hr_context_workspace_bytes(columns, lag)), bytes(16 * rows * columns + 64);
    Array<int32_t> taps(5);
    Array<double> seen(4, 0);
    for (size_t j = 0; j < x.size(); ++j) x[j] = static_cast<float>(static_cast<int32_t>(Random()) % (4 * size)) * 0.25f;
    for (size_t j = 0; j < rows; ++j) classes[j] = static_cast<uint8_t>(Random() % 32);
    for (size_t j = 0; j < 5; ++j) taps[j] = i % 5 ? static_cast<int32_t>(Random() % 33) - 16 : 0;
    const uint8_t* given = i % 7 ? classes.data() : nullptr;
    hr_context_begin_encode(state.data(), bytes.data(), bytes.size());
    const auto written_number = static_cast<uint32_t>(Random() >> (33 + i % 31));
    hr_context_put_numbers(state.data(), static_cast<int32_t>(i % 16), 1, &written_number);
    // Without lambda the choice is a matter of exact squares; with it, of logarithms that differ between machines.
    hr_context_put_plane(state.data(), kind, rows, columns, given, lag, taps.data(), 0, 1, 1.0625f, x.data(), q.data(),
                         workspace.data(), seen.data());
    const uint64_t written = hr_context_end_encode(state.data());
    if (written > bytes.size()) std::abort();
    q.TakeAll(), seen.TakeAll(), Take(&written, sizeof written), Take(bytes.data(), written);
    Array<uint8_t> exact(written);
    std::memcpy(exact.data(), bytes.data(), written);
    uint32_t number;
    hr_context_begin_decode(state.data(), exact.data(), written);
    if (hr_context_get_number(state.data(), static_cast<int32_t>(i % 16), UINT32_MAX, &number) != 0) std::abort();
    Take(&number, sizeof number);
    if (hr_context_get_plane(state.data(), kind, rows, columns, given, lag, taps.data(), back.data(),
                             workspace.data()) != 0) {
      std::abort();
    }
    if (hr_context_end_decode(state.data()) != 0 || std::memcmp(q.data(), back.data(), 2 * q.size()) != 0) std::abort();
    hr_context_decode_levels(q.size(), q.data(), 60, 70, 0.37f, levels.data());
    levels.TakeAll();

    for (size_t j = 0; j < written; ++j) exact[j] = static_cast<uint8_t>(Random());
    hr_context_begin_decode(state.data(), exact.data(), written);
    const int32_t status = hr_context_get_plane(state.data(), kind, rows, columns, given, lag, taps.data(), back.data(),
                                                workspace.data());
    Take(&status, sizeof status);
    if (status == 0) back.TakeAll();
  }
}

// An op on signed bytes in an arena of its own: random inputs of so many bytes, at most three, the second of them
// `packed` where that is given; what it writes is taken.
void IntegerOp(const char* name, std::initializer_list<size_t> inputs, const Array<uint8_t>* packed, size_t y,
               std::initializer_list<int64_t> ints, std::initializer_list<double> floats = {}) {
  hedgerow::Op op = {hr_op_code(name), 0, {}, {}, {}};
  size_t end = 0, slot = 0, starts[4] = {};
  for (int64_t& buffer : op.buffers) buffer = -1;
  for (const size_t bytes : inputs) {
    op.buffers[slot] = static_cast<int64_t>(starts[slot] = end);
    end += (bytes + 63) / 64 * 64, ++slot;
  }
  // The output, and before it the inputs, end where nobody may touch.
  const size_t out = end + (64 - y % 64) % 64;
  op.buffers[slot] = static_cast<int64_t>(out);
  slot = 0;
  for (const int64_t value : ints) op.ints[slot++] = value;
  slot = 0;
  for (const double value : floats) op.floats[slot++] = value;
  Array<uint8_t> arena(out + y);
  arena.Randomise();
  if (packed) std::memcpy(arena.data() + starts[1], packed->data(), packed->size());
  int64_t bad;
  const char* why;
  void* session = hr_session_create(&op, 1, static_cast<int64_t>(arena.size()), &bad, &why);
  if (session == nullptr || hr_session_run(session, nullptr, arena.data(), 0, 1, &bad) != 0) std::abort();
  hr_session_free(session);
  Take(arena.data() + out, y);
}

int64_t Between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(Random() % static_cast<uint64_t>(high - low + 1));
}

// A layer's random constants: w of -127 to 127, and a multiplier that spreads most sums over a byte.
struct Layer {
  Layer(size_t outputs, size_t products) : w(outputs * products), bias(outputs), multiplier(outputs) {
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<int8_t>(Between(-127, 127));
    for (size_t i = 0; i < outputs; ++i) {
      bias[i] = static_cast<int32_t>(Between(-5000, 5000));
      multiplier[i] = static_cast<float>(1 + Random() % 100) * 1e-3f / static_cast<float>(products);
    }
  }
  Array<int8_t> w;
  Array<int32_t> bias;
  Array<float> multiplier;
};

void Windows() {
  for (size_t i = 0; i < 200; ++i) {
    const int64_t n = Between(1, 2), kh = Between(1, 5), kw = Between(1, 5), sh = Between(1, 3), sw = Between(1, 3);
    const int64_t ph = Between(0, kh / 2), pw = Between(0, kw / 2), h = kh + Between(0, 9), w = kw + Between(0, 17);
    const int64_t c = i % 10 ? Between(1, 40) : Between(1, 2) * 64, o = i % 4 ? Between(1, 36) : Between(1, 4) * 48;
    const int64_t oh = (h + 2 * ph - kh) / sh + 1, ow = (w + 2 * pw - kw) / sw + 1, zero = Between(-128, 127);
    const auto channels = static_cast<size_t>(c), outputs = static_cast<size_t>(o);
    const auto rows = static_cast<size_t>(kh), depth = static_cast<size_t>(kw * c);
    const auto places = static_cast<size_t>(kh * kw);
    const auto x = static_cast<size_t>(n * h * w * c), y = static_cast<size_t>(n * oh * ow);
    const Layer conv(outputs, rows * depth), depthwise(channels, places);
    Array<uint8_t> one(hr_conv_s8_packed_bytes(outputs, rows, depth));
    Array<uint8_t> two(hr_depthwise_s8_packed_bytes(channels, places));
    if (hr_conv_s8_pack(outputs, rows, depth, conv.w.data(), conv.bias.data(), conv.multiplier.data(), one.data(),
                        one.size()) != 0 ||
        hr_depthwise_s8_pack(channels, places, depthwise.w.data(), depthwise.bias.data(), depthwise.multiplier.data(),
                             two.data(), two.size()) != 0) {
      std::abort();
    }
    IntegerOp("conv2d_s8", {x, one.size()}, &one, y * outputs,
              {n, h, w, c, o, kh, kw, sh, sw, ph, pw, zero, 3, Between(-128, 0), Between(1, 127)});
    IntegerOp("depthwise_s8", {x, two.size()}, &two, y * channels,
              {n, h, w, c, kh, kw, sh, sw, ph, pw, zero, 3, Between(-128, 0), Between(1, 127)});
    IntegerOp("max_pool_s8", {x}, nullptr, y * channels, {n, h, w, c, kh, kw, sh, sw, ph, pw, -100, 100});
    const auto all = static_cast<size_t>(n * ((h - kh) / sh + 1) * ((w - kw) / sw + 1)) * channels;
    IntegerOp("avg_pool_s8", {x}, nullptr, all, {n, h, w, c, kh, kw, sh, sw, zero, 5, -128, 127}, {0.7});
  }
}

void Vectors() {
  for (size_t i = 0; i < 200; ++i) {
    const int64_t m = Between(1, 14), o = Between(1, 150), k = i % 9 ? Between(1, 200) : Between(1000, 3000);
    const auto outputs = static_cast<size_t>(o), depth = static_cast<size_t>(k), n = static_cast<size_t>(m * k);
    const Layer layer(outputs, depth);
    Array<uint8_t> packed(hr_conv_s8_packed_bytes(outputs, 1, depth));
    if (hr_conv_s8_pack(outputs, 1, depth, layer.w.data(), layer.bias.data(), layer.multiplier.data(), packed.data(),
                        packed.size()) != 0) {
      std::abort();
    }
    IntegerOp("linear_s8", {n, packed.size()}, &packed, static_cast<size_t>(m * o), {m, o, k, -9, -128, 127});
    const int64_t a = Between(-128, 127), b = Between(-128, 127);
    IntegerOp("add_s8", {n, n}, nullptr, n, {m * k, a, b, 7, -128, 127}, {0.3 + static_cast<double>(i % 7), 0.125});
    IntegerOp("mul_s8", {n, n}, nullptr, n, {m * k, a, b, 7, -128, 127}, {0.01});
    IntegerOp("lookup_s8", {n, 256}, nullptr, n, {m * k});
    IntegerOp("quantize_s8", {4 * n}, nullptr, n, {1, m, k, a}, {0.37});
    IntegerOp("dequantize_s8", {n}, nullptr, 4 * n, {1, m, k, a}, {0.37});
  }
}

struct Family {
  const char* name;
  void (*run)();
  uint64_t digest;  // of the first ISA
};

Family families[] = {{"gemm_s8", Gemm, 0},     {"quantize", Quantize, 0}, {"requantize", Requantize, 0},
                     {"pack_bits", PackBits, 0}, {"mask_add", MaskAdd, 0},  {"topk", Topk, 0},
                     {"low_rank", LowRank, 0},   {"context", Context, 0},   {"windows_s8", Windows, 0},
                     {"vectors_s8", Vectors, 0}};

}  // namespace

int main() {
  bool same = true;
  const char* isa;
  for (int32_t i = 0; (isa = hr_isa_name(i)) != nullptr; ++i) {
    hr_select_isa(isa);
    for (Family& family : families) {
      state = 1, digest = 0xcbf29ce484222325u;
      family.run();
      if (i == 0) family.digest = digest;
      same = same && digest == family.digest;
      std::printf("%-10s %-10s %016" PRIx64 "%s\n", family.name, isa, digest, digest == family.digest ? "" : "  DIFFERS");
    }
  }
  return same ? 0 : 1;
}
