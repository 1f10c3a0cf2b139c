// Vectors of the ISA at hand, in GCC's and Clang's own vector notation. The file that includes this has defined
// `struct Isa` with kWidth (floats in a vector), kTileRows, kTileVectors and kPacks (gemm/tile.h), LoadPart and
// StorePart for the first n < kWidth floats of a vector, which read and write nothing past them, and AtLeast and AtMost.
//
// Everything under the families' generic.h has internal linkage: the same source is compiled once for each ISA, and
// a linker that merged two copies of a function could hand AVX2 code to a CPU without it.
#ifndef HEDGEROW_ISA_SIMD_H_
#define HEDGEROW_ISA_SIMD_H_

#include <cstddef>
#include <cstdint>

#include "isa/index.h"

namespace hedgerow {
namespace {

constexpr Index kWidth = Isa::kWidth;

using V = float __attribute__((vector_size(Isa::kWidth * 4)));
using VI = int32_t __attribute__((vector_size(Isa::kWidth * 4)));
using VU = uint32_t __attribute__((vector_size(Isa::kWidth * 4)));

HEDGEROW_INLINE V Splat(float x) { return x - V{}; }

HEDGEROW_INLINE V Load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

HEDGEROW_INLINE void Store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }

// The first n <= kWidth floats, then zeros.
HEDGEROW_INLINE V LoadPart(const float* p, Index n) { return n == kWidth ? Load(p) : (V)Isa::LoadPart(p, n); }

HEDGEROW_INLINE void StorePart(float* p, V v, Index n) {
  if (n == kWidth) return Store(p, v);
  Isa::StorePart(p, v, n);
}

template <typename To, typename From>
HEDGEROW_INLINE To Bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// The larger and the smaller of x and a number; x where it is NaN.
HEDGEROW_INLINE V AtLeast(float low, V x) { return (V)Isa::AtLeast(Splat(low), x); }
HEDGEROW_INLINE V AtMost(float high, V x) { return (V)Isa::AtMost(Splat(high), x); }

// v with zeros from lane n on, whatever stood there.
HEDGEROW_INLINE V KeepFirst(V v, Index n) {
  VI lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return Bits<V>(Bits<VI>(v) & (lane < static_cast<int32_t>(n)));
}

// y[i] = f(x[i]), with the same f, and so the same bits, for every element wherever it stands.
template <typename F>
HEDGEROW_INLINE void Map(Index n, const float* x, float* y, F f) {
  Index i = 0;
  for (; i + kWidth <= n; i += kWidth) Store(y + i, f(Load(x + i)));
  if (i < n) StorePart(y + i, f(LoadPart(x + i, n - i)), n - i);
}

template <typename F>
HEDGEROW_INLINE void Map(Index n, const float* a, const float* b, float* y, F f) {
  Index i = 0;
  for (; i + kWidth <= n; i += kWidth) Store(y + i, f(Load(a + i), Load(b + i)));
  if (i < n) StorePart(y + i, f(LoadPart(a + i, n - i), LoadPart(b + i, n - i)), n - i);
}

// f(i, k) for i = 0, kWidth, 2 kWidth ... where k is the number of elements left, at most kWidth.
template <typename F>
HEDGEROW_INLINE void ForVectors(Index n, F f) {
  Index i = 0;
  for (; i + kWidth <= n; i += kWidth) f(i, kWidth);
  if (i < n) f(i, n - i);
}

HEDGEROW_INLINE void Zero(Index n, float* y) { __builtin_memset(y, 0, static_cast<size_t>(n) * sizeof *y); }

HEDGEROW_INLINE void CopyFloats(Index n, const float* x, float* y) {
  __builtin_memmove(y, x, static_cast<size_t>(n) * sizeof *y);
}

// For rows so short that a call would cost more than the work. The last vector overlaps the one before it, which is
// cheaper than a part of a vector. x and y do not overlap.
HEDGEROW_INLINE void CopyShort(Index n, const float* x, float* y) {
  if (n < kWidth) return StorePart(y, LoadPart(x, n), n);
  for (Index i = 0; i + kWidth < n; i += kWidth) Store(y + i, Load(x + i));
  Store(y + n - kWidth, Load(x + n - kWidth));
}

HEDGEROW_INLINE void Splat(Index n, float value, float* y) {
  for (Index i = 0; i < n; ++i) y[i] = value;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ISA_SIMD_H_
