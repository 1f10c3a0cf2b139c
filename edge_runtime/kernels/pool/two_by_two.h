// Max pooling of 2 x 2 windows that tile their planes: the commonest, a row of windows at a time.
//
// A row narrower than a vector is read and written as a whole vector wherever that stays within the planes at hand, for
// what it writes past its end the next row writes over; the last rows are written in parts.
#ifndef HEDGEROW_POOL_TWO_BY_TWO_H_
#define HEDGEROW_POOL_TWO_BY_TWO_H_

#include "isa/deal.h"

namespace hedgerow {
namespace {

// Windows [column, column + n) of one row of windows; `whole`: n = kWidth, or as good as that.
struct WindowRun {
  Index column, n;
  bool whole;
};

// f(run) for a row of `columns` windows, after which `left` more windows are there to be written over.
template <typename F>
HEDGEROW_INLINE void ForWindowRuns(Index columns, Index left, F f) {
  if (columns < kWidth) return f(WindowRun{0, columns, columns + left >= kWidth});
  Index column = 0;
  for (; column + kWidth < columns; column += kWidth) f(WindowRun{column, kWidth, true});
  f(WindowRun{columns - kWidth, kWidth, true});  // may overlap the one before it
}

struct EvensAndOdds {
  V evens, odds;
};

HEDGEROW_INLINE EvensAndOdds LoadPairs(const float* p, const WindowRun& run) {
  const V a = run.whole ? Load(p) : LoadPart(p, Min(kWidth, 2 * run.n));
  const V b = run.whole ? Load(p + kWidth) : LoadPart(p + kWidth, Max(0, 2 * run.n - kWidth));
  return {Evens(a, b), Odds(a, b)};
}

HEDGEROW_INLINE void StorePairs(V evens, V odds, float* p, const WindowRun& run) {
  if (run.whole) return StoreInTurn(evens, odds, 2 * kWidth, p);
  float both[2 * kWidth];
  StoreInTurn(evens, odds, 2 * kWidth, both);
  for (Index i = 0; i < 2 * run.n; ++i) p[i] = both[i];
}

// The low byte of each lane. Two lanes at a time, as the halves of 64 bits.
HEDGEROW_INLINE void StoreBytes(VI v, uint8_t* p) {
  using Wide = uint64_t __attribute__((vector_size(Isa::kWidth * 4)));
  const Wide pairs = Bits<Wide>(v);
  const Wide bytes = pairs | (pairs >> 24);
  for (Index i = 0; i < kWidth / 2; ++i) {
    const auto two = static_cast<uint16_t>(bytes[i]);
    __builtin_memcpy(p + 2 * i, &two, 2);
  }
}

// Planes [first, last) of H x W.
void MaxOfPairs(Index first, Index last, Index H, Index W, const float* x, float* y, uint8_t* index) {
  const Index columns = W / 2, end = last * (H / 2);
  for (Index row = first * (H / 2); row < end; ++row) {
    ForWindowRuns(columns, (end - row - 1) * columns, [=](const WindowRun& run) {
      const float* top = x + 2 * row * W + 2 * run.column;
      const EvensAndOdds above = LoadPairs(top, run), below = LoadPairs(top + W, run);
      V best = above.evens;
      VI place{};
      auto meet = [&](V value, int32_t here) {
        // Larger, or NaN, for which no comparison holds; but nothing takes the place of a NaN.
        const VI wins = ~(value <= best) & (best == best);
        best = wins ? value : best;
        place = wins ? here - VI{} : place;
      };
      meet(above.odds, 1);
      meet(below.evens, 2);
      meet(below.odds, 3);
      float* out = y + row * columns + run.column;
      uint8_t* places = index + row * columns + run.column;
      if (run.whole) {
        Store(out, best);
        StoreBytes(place, places);
      } else {
        StorePart(out, best, run.n);
        for (Index i = 0; i < run.n; ++i) places[i] = static_cast<uint8_t>(place[i]);
      }
    });
  }
}

void SpreadPairs(Index first, Index last, Index H, Index W, const float* g, const uint8_t* index, float* dx) {
  using Bytes = uint8_t __attribute__((vector_size(Isa::kWidth)));
  const Index columns = W / 2, end = last * (H / 2);
  for (Index row = first * (H / 2); row < end; ++row) {
    ForWindowRuns(columns, (end - row - 1) * columns, [=](const WindowRun& run) {
      const Index at = row * columns + run.column;
      Bytes bytes{};
      if (run.whole) {
        __builtin_memcpy(&bytes, index + at, sizeof bytes);
      } else {
        for (Index i = 0; i < run.n; ++i) bytes[i] = index[at + i];
      }
      const VI place = __builtin_convertvector(bytes, VI);
      const V d = run.whole ? Load(g + at) : LoadPart(g + at, run.n);
      auto where = [=](int32_t here) { return place == here ? d : V{}; };
      float* to = dx + 2 * row * W + 2 * run.column;
      StorePairs(where(0), where(1), to, run);
      StorePairs(where(2), where(3), to + W, run);
    });
  }
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_POOL_TWO_BY_TWO_H_
