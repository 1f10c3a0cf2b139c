// Runs the kernels of c_api_arrays.h and c_api_context.h on made-up arrays, on every ISA of this CPU, and prints one digest a family of all
// that they wrote. The digests of every ISA, CPU and architecture are the same: one that differs is a wrong kernel, and
// the exit code then is 1. Inputs end where a page that nobody may touch begins, so a read past one's end is a crash.
//
// Build it with the core's own sources, statically for an emulator without a system root (`-cpu cortex-a53` and others).
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "c_api_arrays.h"
#include "c_api_context.h"

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

struct Family {
  const char* name;
  void (*run)();
  uint64_t digest;  // of the first ISA
};

Family families[] = {{"gemm_s8", Gemm, 0},     {"quantize", Quantize, 0}, {"requantize", Requantize, 0},
                     {"pack_bits", PackBits, 0}, {"mask_add", MaskAdd, 0},  {"topk", Topk, 0},
                     {"low_rank", LowRank, 0},   {"context", Context, 0}};

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
