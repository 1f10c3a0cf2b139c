// Between float32 and signed bytes: real = (q - zero_point) * scale. Row-major, rows x columns; per tensor is one row.
// Every step is rounded on its own (no fused operation, no reciprocal), so every ISA gives the same bits.
#ifndef HEDGEROW_QUANTIZE_H_
#define HEDGEROW_QUANTIZE_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {

struct QuantizeKernels {
  // q = saturate(round(x / scale[row]) + zero_point[row]), ties to even, as ONNX QuantizeLinear; scale is finite and
  // above 0. Infinities saturate; NaN becomes the zero point, that is a real 0.
  void (*quantize)(size_t rows, size_t columns, const float* x, const float* scale, const int8_t* zero_point,
                   int8_t* q);
  // x = (q - zero_point[row]) * scale[row]
  void (*dequantize)(size_t rows, size_t columns, const int8_t* q, const float* scale, const int8_t* zero_point,
                     float* x);
  // The least and the greatest of each row, -0 counting as less than +0. Both are NaN in a row that holds one, and
  // +infinity and -infinity in a row of no columns.
  void (*range)(size_t rows, size_t columns, const float* x, float* low, float* high);
  // q = saturate(round((sum + bias) * multiplier) + zero_point), ties to even. sum + bias is taken mod 2^32, then
  // rounded to float32, and so is its product with the multiplier: ONNX Runtime's arithmetic, and the same bits on
  // every ISA (TFLite's fixed-point multiplier rounds differently). The multiplier is finite. bias may be nullptr.
  // One bias and multiplier for each row, or one for each column.
  void (*requantize_rows)(size_t rows, size_t columns, const int32_t* sum, const int32_t* bias,
                          const float* multiplier, int8_t zero_point, int8_t* q);
  void (*requantize_columns)(size_t rows, size_t columns, const int32_t* sum, const int32_t* bias,
                             const float* multiplier, int8_t zero_point, int8_t* q);
};

}  // namespace hedgerow

#endif  // HEDGEROW_QUANTIZE_H_
