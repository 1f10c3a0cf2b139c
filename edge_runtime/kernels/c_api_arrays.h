// The C ABI's kernels on plain arrays, on the terms of c_api.h. Each family's header is its specification. Integers are
// exact, and every result is bit for bit the same on every ISA.
#ifndef HEDGEROW_C_API_ARRAYS_H_
#define HEDGEROW_C_API_ARRAYS_H_

#include "c_api.h"

// gemm_s8/gemm_s8.h. A packed b starts with a header that names its ISA and sizes, so that it is always multiplied by
// the kernels that it was packed for, whatever was selected since. Another build may have another layout.
HR_API size_t hr_gemm_s8_pack_bytes(size_t n, size_t k);
// Returns 0, or -1 when `bytes` is not hr_gemm_s8_pack_bytes(n, k) of the ISA selected now; then nothing is written.
HR_API int32_t hr_gemm_s8_pack(size_t n, size_t k, const int8_t* b, void* packed, size_t bytes);
// Returns 0, or -1 when `packed` is no n x k matrix of an ISA that runs here; then nothing is written.
HR_API int32_t hr_gemm_s8(size_t m, size_t n, size_t k, const int8_t* a, const void* packed, int32_t* c);

// quantize/quantize.h.
HR_API void hr_quantize_s8(size_t rows, size_t columns, const float* x, const float* scale, const int8_t* zero_point,
                           int8_t* q);
HR_API void hr_dequantize_s8(size_t rows, size_t columns, const int8_t* q, const float* scale,
                             const int8_t* zero_point, float* x);
HR_API void hr_range_f32(size_t rows, size_t columns, const float* x, float* low, float* high);
HR_API void hr_requantize_rows_s8(size_t rows, size_t columns, const int32_t* sum, const int32_t* bias,
                                  const float* multiplier, int8_t zero_point, int8_t* q);
HR_API void hr_requantize_columns_s8(size_t rows, size_t columns, const int32_t* sum, const int32_t* bias,
                                     const float* multiplier, int8_t zero_point, int8_t* q);

// integers/packed.h: the constants of conv2d_s8 and linear_s8 (one row, of all K), and those of depthwise_s8, for the
// arena of a Program that runs on the ISA selected now. How many bytes they take does not depend on the ISA; 0 for
// sizes that no op takes. A layer's bias holds what its input's zero point adds, - zero_point * (the sum of w).
HR_API size_t hr_conv_s8_packed_bytes(size_t outputs, size_t rows, size_t depth);
HR_API size_t hr_depthwise_s8_packed_bytes(size_t channels, size_t places);
// w: (outputs, rows, depth), or (channels, places), without -128. Return 0, or -1 when `bytes` is not what the
// functions above give, or w holds -128; then nothing is written.
HR_API int32_t hr_conv_s8_pack(size_t outputs, size_t rows, size_t depth, const int8_t* w, const int32_t* bias,
                               const float* multiplier, void* packed, size_t bytes);
HR_API int32_t hr_depthwise_s8_pack(size_t channels, size_t places, const int8_t* w, const int32_t* bias,
                                    const float* multiplier, void* packed, size_t bytes);

// pack_bits/pack_bits.h. Returns how many bytes n values of 1 <= width <= 32 bits take.
HR_API size_t hr_packed_bytes(size_t n, uint32_t width);
HR_API void hr_pack_u8(size_t n, uint32_t width, const uint8_t* values, uint8_t* bytes);
HR_API void hr_unpack_u8(size_t n, uint32_t width, const uint8_t* bytes, uint8_t* values);
HR_API void hr_pack_u32(size_t n, uint32_t width, const uint32_t* values, uint8_t* bytes);
HR_API void hr_unpack_u32(size_t n, uint32_t width, const uint8_t* bytes, uint32_t* values);

// mask_add/mask_add.h.
HR_API void hr_add_u64(size_t n, const uint64_t* mask, uint64_t* acc);
HR_API void hr_subtract_u64(size_t n, const uint64_t* mask, uint64_t* acc);
HR_API void hr_add_u32(size_t n, const uint32_t* mask, uint32_t* acc);
HR_API void hr_subtract_u32(size_t n, const uint32_t* mask, uint32_t* acc);
HR_API void hr_add_u32_to_u64(size_t n, const uint32_t* mask, uint64_t* acc);
HR_API void hr_subtract_u32_from_u64(size_t n, const uint32_t* mask, uint64_t* acc);

// topk/topk.h.
HR_API size_t hr_count_at_least(size_t n, const float* x, float threshold);
HR_API int32_t hr_kth_magnitude(size_t n, const float* x, size_t k, float* threshold);
HR_API size_t hr_take_at_least(size_t n, const float* x, float threshold, size_t k, uint32_t* indices, float* values);

#endif  // HEDGEROW_C_API_ARRAYS_H_
