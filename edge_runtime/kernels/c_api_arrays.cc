#include "c_api_arrays.h"

#include <cstring>

#include "integers/packed.h"
#include "isa/dispatch.h"

using hedgerow::SelectedIsa;

namespace {

// What a packed b starts with. The panels follow kPackHeader bytes on, so that they are aligned as the whole is.
struct PackHeader {
  char isa[16];
  uint64_t n, k;
};
constexpr size_t kPackHeader = 64;
static_assert(sizeof(PackHeader) <= kPackHeader);

constexpr size_t kMostOutputs = (size_t{1} << 31) - 1;

bool IsSymmetric(size_t n, const int8_t* w) { return std::memchr(w, 0x80, n) == nullptr; }

}  // namespace

size_t hr_gemm_s8_pack_bytes(size_t n, size_t k) { return kPackHeader + SelectedIsa()->gemm_s8->pack_bytes(n, k); }

int32_t hr_gemm_s8_pack(size_t n, size_t k, const int8_t* b, void* packed, size_t bytes) {
  const hedgerow::IsaRow* isa = SelectedIsa();
  if (bytes != kPackHeader + isa->gemm_s8->pack_bytes(n, k)) return -1;
  PackHeader header = {{}, n, k};
  std::memcpy(header.isa, isa->name, std::strlen(isa->name));
  std::memset(packed, 0, kPackHeader);
  std::memcpy(packed, &header, sizeof header);
  isa->gemm_s8->pack(n, k, b, static_cast<int8_t*>(packed) + kPackHeader);
  return 0;
}

int32_t hr_gemm_s8(size_t m, size_t n, size_t k, const int8_t* a, const void* packed, int32_t* c) {
  PackHeader header;
  std::memcpy(&header, packed, sizeof header);
  header.isa[sizeof header.isa - 1] = 0;
  const hedgerow::IsaRow* isa = hedgerow::FindIsa(header.isa);
  if (!isa || header.n != n || header.k != k) return -1;
  isa->gemm_s8->multiply(m, n, k, a, static_cast<const int8_t*>(packed) + kPackHeader, c);
  return 0;
}

void hr_quantize_s8(size_t rows, size_t columns, const float* x, const float* scale, const int8_t* zero_point,
                    int8_t* q) {
  SelectedIsa()->arrays->quantize.quantize(rows, columns, x, scale, zero_point, q);
}

void hr_dequantize_s8(size_t rows, size_t columns, const int8_t* q, const float* scale, const int8_t* zero_point,
                      float* x) {
  SelectedIsa()->arrays->quantize.dequantize(rows, columns, q, scale, zero_point, x);
}

void hr_range_f32(size_t rows, size_t columns, const float* x, float* low, float* high) {
  SelectedIsa()->arrays->quantize.range(rows, columns, x, low, high);
}

void hr_requantize_rows_s8(size_t rows, size_t columns, const int32_t* sum, const int32_t* bias,
                           const float* multiplier, int8_t zero_point, int8_t* q) {
  SelectedIsa()->arrays->quantize.requantize_rows(rows, columns, sum, bias, multiplier, zero_point, q);
}

void hr_requantize_columns_s8(size_t rows, size_t columns, const int32_t* sum, const int32_t* bias,
                              const float* multiplier, int8_t zero_point, int8_t* q) {
  SelectedIsa()->arrays->quantize.requantize_columns(rows, columns, sum, bias, multiplier, zero_point, q);
}

size_t hr_conv_s8_packed_bytes(size_t outputs, size_t rows, size_t depth) {
  if (outputs < 1 || outputs > kMostOutputs || rows < 1 || depth < 1 || depth > hedgerow::kMostProducts ||
      rows > hedgerow::kMostProducts / depth) {
    return 0;
  }
  const auto o = static_cast<int64_t>(outputs), r = static_cast<int64_t>(rows), d = static_cast<int64_t>(depth);
  return static_cast<size_t>(hedgerow::Blocks(o) * hedgerow::ConvBlockBytes(r, d));
}

size_t hr_depthwise_s8_packed_bytes(size_t channels, size_t places) {
  if (channels < 1 || channels > kMostOutputs || places < 1 || places > hedgerow::kMostPlaces) return 0;
  const auto c = static_cast<int64_t>(channels), t = static_cast<int64_t>(places);
  return static_cast<size_t>(hedgerow::Blocks(c) * hedgerow::DepthwiseBlockBytes(t));
}

int32_t hr_conv_s8_pack(size_t outputs, size_t rows, size_t depth, const int8_t* w, const int32_t* bias,
                        const float* multiplier, void* packed, size_t bytes) {
  if (bytes == 0 || bytes != hr_conv_s8_packed_bytes(outputs, rows, depth)) return -1;
  if (!IsSymmetric(outputs * rows * depth, w)) return -1;
  const auto o = static_cast<int64_t>(outputs), r = static_cast<int64_t>(rows), d = static_cast<int64_t>(depth);
  SelectedIsa()->integers->pack_conv(o, r, d, w, bias, multiplier, static_cast<uint8_t*>(packed));
  return 0;
}

int32_t hr_depthwise_s8_pack(size_t channels, size_t places, const int8_t* w, const int32_t* bias,
                             const float* multiplier, void* packed, size_t bytes) {
  if (bytes == 0 || bytes != hr_depthwise_s8_packed_bytes(channels, places)) return -1;
  if (!IsSymmetric(channels * places, w)) return -1;
  const auto c = static_cast<int64_t>(channels), t = static_cast<int64_t>(places);
  SelectedIsa()->integers->pack_depthwise(c, t, w, bias, multiplier, static_cast<uint8_t*>(packed));
  return 0;
}

size_t hr_packed_bytes(size_t n, uint32_t width) { return hedgerow::PackedBytes(n, width); }

void hr_pack_u8(size_t n, uint32_t width, const uint8_t* values, uint8_t* bytes) {
  SelectedIsa()->arrays->pack_bits.pack_u8(n, width, values, bytes);
}

void hr_unpack_u8(size_t n, uint32_t width, const uint8_t* bytes, uint8_t* values) {
  SelectedIsa()->arrays->pack_bits.unpack_u8(n, width, bytes, values);
}

void hr_pack_u32(size_t n, uint32_t width, const uint32_t* values, uint8_t* bytes) {
  SelectedIsa()->arrays->pack_bits.pack_u32(n, width, values, bytes);
}

void hr_unpack_u32(size_t n, uint32_t width, const uint8_t* bytes, uint32_t* values) {
  SelectedIsa()->arrays->pack_bits.unpack_u32(n, width, bytes, values);
}

void hr_add_u64(size_t n, const uint64_t* mask, uint64_t* acc) { SelectedIsa()->arrays->mask_add.add_u64(n, mask, acc); }

void hr_subtract_u64(size_t n, const uint64_t* mask, uint64_t* acc) {
  SelectedIsa()->arrays->mask_add.subtract_u64(n, mask, acc);
}

void hr_add_u32(size_t n, const uint32_t* mask, uint32_t* acc) { SelectedIsa()->arrays->mask_add.add_u32(n, mask, acc); }

void hr_subtract_u32(size_t n, const uint32_t* mask, uint32_t* acc) {
  SelectedIsa()->arrays->mask_add.subtract_u32(n, mask, acc);
}

void hr_add_u32_to_u64(size_t n, const uint32_t* mask, uint64_t* acc) {
  SelectedIsa()->arrays->mask_add.add_u32_to_u64(n, mask, acc);
}

void hr_subtract_u32_from_u64(size_t n, const uint32_t* mask, uint64_t* acc) {
  SelectedIsa()->arrays->mask_add.subtract_u32_from_u64(n, mask, acc);
}

size_t hr_count_at_least(size_t n, const float* x, float threshold) {
  return SelectedIsa()->arrays->topk.count(n, x, threshold);
}

int32_t hr_kth_magnitude(size_t n, const float* x, size_t k, float* threshold) {
  return SelectedIsa()->arrays->topk.kth(n, x, k, threshold);
}

size_t hr_take_at_least(size_t n, const float* x, float threshold, size_t k, uint32_t* indices, float* values) {
  return SelectedIsa()->arrays->topk.take(n, x, threshold, k, indices, values);
}
