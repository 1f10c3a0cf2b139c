// The loops, once, in a form that the compiler turns into the vectors of the ISA that it is told to use.
#ifndef HEDGEROW_QUANTIZE_GENERIC_H_
#define HEDGEROW_QUANTIZE_GENERIC_H_

#include <cstring>

#include "quantize/quantize.h"

namespace hedgerow {
namespace {

// round(t) + zero_point, saturated. The bounds are whole numbers, so it is the same to saturate first. Adding 1.5 * 2^23
// leaves no bits for a fraction, so the addition rounds, to even; the integer then stands in the low bits.
inline int8_t RoundToByte(float t, int32_t zero_point) {
  constexpr float kShift = 12582912.0f;
  constexpr int32_t kShiftBits = 0x4b400000;
  const float low = static_cast<float>(-128 - zero_point), high = static_cast<float>(127 - zero_point);
  t = t == t ? t : 0.0f;
  t = t > high ? high : t;
  t = t < low ? low : t;
  const float shifted = t + kShift;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return static_cast<int8_t>(bits - kShiftBits + zero_point);
}

void Quantize(size_t rows, size_t columns, const float* __restrict x, const float* scale, const int8_t* zero_point,
              int8_t* __restrict q) {
  for (size_t r = 0; r < rows; ++r, x += columns, q += columns) {
    const float step = scale[r];
    const int32_t zero = zero_point[r];
    for (size_t i = 0; i < columns; ++i) q[i] = RoundToByte(x[i] / step, zero);
  }
}

void Dequantize(size_t rows, size_t columns, const int8_t* __restrict q, const float* scale, const int8_t* zero_point,
                float* __restrict x) {
  for (size_t r = 0; r < rows; ++r, x += columns, q += columns) {
    const float step = scale[r];
    const int32_t zero = zero_point[r];
    for (size_t i = 0; i < columns; ++i) x[i] = static_cast<float>(q[i] - zero) * step;
  }
}

// A float's bits as an integer that is ordered as the float is; its own inverse.
inline int32_t Ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

inline float FromOrdered(int32_t order) {
  const int32_t bits = Ordered(order);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

void Range(size_t rows, size_t columns, const float* x, float* low, float* high) {
  constexpr int32_t kInfinity = 0x7f800000, kNaN = 0x7fc00000;
  for (size_t r = 0; r < rows; ++r, x += columns) {
    int32_t least = kInfinity, greatest = Ordered(static_cast<int32_t>(0xff800000u)), magnitude = 0;
    for (size_t i = 0; i < columns; ++i) {
      int32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      const int32_t order = Ordered(bits), size = bits & 0x7fffffff;
      least = order < least ? order : least;
      greatest = order > greatest ? order : greatest;
      magnitude = size > magnitude ? size : magnitude;
    }
    if (magnitude > kInfinity) least = greatest = kNaN;
    low[r] = FromOrdered(least);
    high[r] = FromOrdered(greatest);
  }
}

// Unsigned: the addition may wrap.
inline int32_t AddWrapping(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

void RequantizeRows(size_t rows, size_t columns, const int32_t* __restrict sum, const int32_t* bias,
                    const float* multiplier, int8_t zero_point, int8_t* __restrict q) {
  for (size_t r = 0; r < rows; ++r, sum += columns, q += columns) {
    const int32_t plus = bias ? bias[r] : 0;
    const float times = multiplier[r];
    for (size_t i = 0; i < columns; ++i) {
      q[i] = RoundToByte(static_cast<float>(AddWrapping(sum[i], plus)) * times, zero_point);
    }
  }
}

void RequantizeColumns(size_t rows, size_t columns, const int32_t* __restrict sum, const int32_t* __restrict bias,
                       const float* __restrict multiplier, int8_t zero_point, int8_t* __restrict q) {
  for (size_t r = 0; r < rows; ++r, sum += columns, q += columns) {
    if (bias) {
      for (size_t i = 0; i < columns; ++i) {
        q[i] = RoundToByte(static_cast<float>(AddWrapping(sum[i], bias[i])) * multiplier[i], zero_point);
      }
    } else {
      for (size_t i = 0; i < columns; ++i) {
        q[i] = RoundToByte(static_cast<float>(sum[i]) * multiplier[i], zero_point);
      }
    }
  }
}

constexpr QuantizeKernels kQuantize = {Quantize, Dequantize, Range, RequantizeRows, RequantizeColumns};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_QUANTIZE_GENERIC_H_
