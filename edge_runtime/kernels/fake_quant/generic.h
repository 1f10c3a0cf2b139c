// Rounding to integers of a few bits and back (ops.h): what training sees of a deployed model's arithmetic.
//
// The same bits on every ISA: extremes do not depend on the order, a division is not fused, and nothing is summed.
#ifndef HEDGEROW_FAKE_QUANT_GENERIC_H_
#define HEDGEROW_FAKE_QUANT_GENERIC_H_

#include "math/generic.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

struct Extremes {
  float low, high;  // 0 is between them; a NaN is neither
};

HEDGEROW_INLINE Extremes Wider(Extremes a, Extremes b) {
  return {b.low < a.low ? b.low : a.low, b.high > a.high ? b.high : a.high};
}

Extremes ExtremesOf(Index n, const float* x) {
  V low{}, high{};
  ForVectors(n, [&](Index i, Index k) HEDGEROW_INLINE_BODY {
    const V v = LoadPart(x + i, k);  // zeros past the end
    low = v < low ? v : low;
    high = v > high ? v : high;
  });
  Extremes all{0, 0};
  for (Index lane = 0; lane < kWidth; ++lane) all = Wider(all, {low[lane], high[lane]});
  return all;
}

constexpr double kExtremesNs = 0.1, kRoundNs = 0.4;
constexpr Index kExtremesParts = 16;

// The same, on all threads.
Extremes ExtremesOf(const Call& call, Index n, const float* x) {
  if (call.threads() == 1 || static_cast<double>(n) * kExtremesNs < kLeastTaskNs) return ExtremesOf(n, x);
  const Index length = (n + kExtremesParts - 1) / kExtremesParts;
  Extremes parts[kExtremesParts] = {};
  Extremes* const found = parts;
  call.For((n + length - 1) / length, [=](Index i) { found[i] = ExtremesOf(Min(length, n - i * length), x + i * length); });
  Extremes all{0, 0};
  for (const Extremes& part : parts) all = Wider(all, part);
  return all;
}

// Integers are low to high; at most 255 apart, so that adding kRoundToInt rounds those that count.
struct Grid {
  float scale, zero, low, high;

  HEDGEROW_INLINE V Round(V x) const {
    const V shifted = x / scale + kRoundToInt;
    return (Clamp((shifted - kRoundToInt) + zero, low, high) - zero) * scale;
  }
};

HEDGEROW_INLINE float ScaleOf(float scale) { return scale <= 0x1p-126f ? 1 : scale; }

Status fake_quant(const Call& call) {
  const Index n = call.size(0), batch = call.size(1), bits = call.size(2);
  const float* x = call.f32(0);
  float* y = call.f32(2);
  const Extremes range = ExtremesOf(call, call.count(1, batch) * (n / batch), x);
  // In double, as the grids of a deployed model are.
  const double bottom = -static_cast<double>(1 << (bits - 1)), top = -bottom - 1;
  double scale = (static_cast<double>(range.high) - range.low) / static_cast<double>((1 << bits) - 1);
  if (scale <= 0x1p-126) scale = 1;
  const double zero = __builtin_rint(bottom - range.low / scale);
  const Grid grid{static_cast<float>(scale), static_cast<float>(zero < bottom ? bottom : zero > top ? top : zero),
                  static_cast<float>(bottom), static_cast<float>(top)};
  ForRanges(call, n, kRoundNs, kLine, [=](Index first, Index last) {
    Map(last - first, x + first, y + first, [=](V v) HEDGEROW_INLINE_BODY { return grid.Round(v); });
  });
  return kOk;
}

Status fake_quant_weight(const Call& call) {
  const Index channels = call.size(0), n = call.size(1);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  const float most = static_cast<float>((1 << (call.size(2) - 1)) - 1);
  ForRanges(call, channels, (kExtremesNs + kRoundNs) * static_cast<double>(n), 1, [=](Index first, Index last) {
    for (Index at = first * n; at < last * n; at += n) {
      const Extremes range = ExtremesOf(n, x + at);
      const Grid grid{ScaleOf((range.high > -range.low ? range.high : -range.low) / most), 0, -most, most};
      Map(n, x + at, y + at, [=](V v) HEDGEROW_INLINE_BODY { return grid.Round(v); });
    }
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_FAKE_QUANT_GENERIC_H_
