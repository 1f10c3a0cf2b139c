// Elementary functions of a vector of float32, and their errors against the exact value over all float32 (tests hold
// them to it): Exp 1.5 ulp, Tanh 2 ulp, Sigmoid 3 ulp (and 1e-37 where it is that small); Phi 2.5e-7, and 1e-5 of
// itself down to 1e-37. +-inf give the limits, NaN gives NaN.
//
// The coefficients are minimax fits (Lawson's iteration, in 40 digits) on the intervals named.
#ifndef HEDGEROW_MATH_GENERIC_H_
#define HEDGEROW_MATH_GENERIC_H_

#include "isa/sums.h"

namespace hedgerow {
namespace {

HEDGEROW_INLINE V Polynomial(V, float c) { return Splat(c); }
// c + x (next + x (...))
template <typename... Rest>
HEDGEROW_INLINE V Polynomial(V x, float c, Rest... rest) {
  return c + x * Polynomial(x, rest...);
}

HEDGEROW_INLINE V Abs(V x) { return Bits<V>(Bits<VU>(x) & 0x7fffffffu); }
HEDGEROW_INLINE V WithSignOf(V magnitude, V sign) {
  return Bits<V>((Bits<VU>(magnitude) & 0x7fffffffu) | (Bits<VU>(sign) & 0x80000000u));
}
// x where it is NaN.
HEDGEROW_INLINE V Clamp(V x, float low, float high) { return AtMost(high, AtLeast(low, x)); }

HEDGEROW_INLINE V Sqrt(V x) {
  for (Index i = 0; i < kWidth; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

// exp x = 2^n exp r, n = round(x / log 2), |r| <= log 2 / 2.
struct ExpParts {
  V power;     // exp r
  V exponent;  // n, as an integer in the low bits
};

// Adding 1.5 2^23 rounds to an integer and leaves it in the low bits.
constexpr float kRoundToInt = 12582912.f;

HEDGEROW_INLINE ExpParts ExpPartsOf(V x) {
  const V shifted = x * 1.442695041f + kRoundToInt;
  const V n = shifted - kRoundToInt;
  const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // log 2 in two parts, the first exact in 10 bits
  const V p = Polynomial(r, 5.000000000e-01f, 1.666666567e-01f, 4.166628048e-02f, 8.333504200e-03f, 1.394575229e-03f,
                         1.978926593e-04f);
  return {(r * r * p + r) + 1.f, shifted};
}

HEDGEROW_INLINE V Exp(V x) {
  const ExpParts parts = ExpPartsOf(Clamp(x, -104.f, 89.f));  // past these it is 0 or infinite in any case
  // 2^n in two factors: n = 128 and the subnormals are beyond one exponent. Unsigned, for a NaN leaves any bits here.
  const VI bits = Bits<VI>(parts.exponent) - Bits<VI>(Splat(kRoundToInt));
  const VI half = bits >> 1;
  const VU low = (Bits<VU>(half) + 127u) << 23, high = (Bits<VU>(bits) - Bits<VU>(half) + 127u) << 23;
  return parts.power * Bits<V>(low) * Bits<V>(high);
}

// exp x for x in [-88, 89], or NaN: 0 where that is below the smallest normal number, and infinite from 2^127.5 on.
HEDGEROW_INLINE V ExpWithin(V x) {
  const ExpParts parts = ExpPartsOf(x);
  return parts.power * Bits<V>((Bits<VU>(parts.exponent) + 127u) << 23);
}

// exp x for x that is at most a little above 0, as in softmax; 0 below 1.2e-38.
HEDGEROW_INLINE V ExpOfNegative(V x) { return ExpWithin(AtLeast(-88.f, x)); }

HEDGEROW_INLINE V Tanh(V x) {
  const V magnitude = Abs(x);
  const V s = x * x;
  const V small = x + x * (s * Polynomial(s, -3.333328068e-01f, 1.333138347e-01f, -5.373400077e-02f, 2.061812207e-02f,
                                          -5.679303780e-03f));  // |x| <= 0.63
  const V large = 1.f - 2.f / (ExpWithin(AtMost(89.f, magnitude + magnitude)) + 1.f);
  return magnitude < 0.625f ? small : WithSignOf(large, x);
}

HEDGEROW_INLINE V Sigmoid(V x) { return 1.f / (1.f + ExpWithin(Clamp(-x, -88.f, 89.f))); }

// The normal distribution: cdf = Phi(x), bell = exp(-x^2/2).
struct Normal {
  V cdf, bell;
};

// Phi(-|x|) = bell erfcx(|x|/sqrt 2)/2, where erfcx(t)/2 = exp(t^2) erfc(t)/2 is u times a polynomial in
// u = 1/(1 + 0.4 t).
HEDGEROW_INLINE Normal NormalOf(V x) {
  const V bell = ExpWithin(-AtMost(88.f, 0.5f * x * x));
  const V u = 1.f / (1.f + 0.28284271f * Abs(x));
  const V tail = bell * u *
                 Polynomial(u, 1.128171161e-01f, 1.1322154105e-01f, 1.0094390065e-01f, 9.669617565e-02f,
                            3.9879297595e-02f, 4.3980602175e-02f, 4.1995052250e-02f, -7.016031445e-02f,
                            2.0626666025e-02f);
  return {x > 0.f ? 1.f - tail : tail, bell};
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_MATH_GENERIC_H_
