// The core of all products: a tile of c, kTileRows by kTileVectors vectors, stays in registers while it walks along k.
#ifndef HEDGEROW_GEMM_TILE_H_
#define HEDGEROW_GEMM_TILE_H_

#include <cstdint>

#include "elementwise/activation.h"
#include "isa/simd.h"

// The sums of a tile are registers only where the loops over them are gone.
#define HEDGEROW_UNROLL _Pragma("GCC unroll 16")

namespace hedgerow {
namespace {

constexpr Index kTileRows = Isa::kTileRows;
constexpr Index kTileVectors = Isa::kTileVectors;
constexpr Index kTileColumns = kTileVectors * kWidth;
// A tile sums this many products at most in float32 before the sum is added to c.
constexpr Index kDepth = 256;

// The size of parts of at most `most` that are as even as can be: a small last one would cost as much as a large one.
HEDGEROW_INLINE Index EvenPart(Index whole, Index most) {
  const Index parts = Max(1, (whole + most - 1) / most);
  return (whole + parts - 1) / parts;
}

// What one k takes from both sides, as distances from where the tile's operands start. With a table of these neither
// side needs packing: a convolution's windows are read where they stand.
struct Step {
  Index a, b;
};

// What becomes of a tile's sums on their way to c: added to a bias for each row, or to what stands in c already, and
// then through an activation (elementwise/activation.h).
struct Finish {
  const float* bias;  // one for each row, or nullptr
  bool add;
  Index act;
};

// Where a tile's vector is read, where it goes, and how many of its lanes count; none for a vector that only fills up.
struct Slot {
  Index from, to, lanes;
};

// sums[r][v] of the products a[r outer + steps.a] b[slots[v].from + steps.b + lane]
template <Index kRows>
HEDGEROW_INLINE void Multiply(Index depth, const Step* steps, const float* a, Index outer, const float* b,
                              const Slot* slots, V (&sum)[kRows][kTileVectors]) {
  const float* vectors[kTileVectors];
  for (Index v = 0; v < kTileVectors; ++v) vectors[v] = b + slots[v].from;
  for (Index k = 0; k < depth; ++k) {
    V y[kTileVectors];
    for (Index v = 0; v < kTileVectors; ++v) y[v] = Load(vectors[v] + steps[k].b);
    const float* x = a + steps[k].a;
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) sum[r][v] += x[r * outer] * y[v];
    }
  }
}

// A tile whose vector v goes to c + r ldc + slots[v].to.
template <Index kRows>
void StepsTile(Index depth, const Step* steps, const float* a, Index outer, const float* b, const Slot* slots,
               const Finish& finish, float* c, Index ldc) {
  V sum[kRows][kTileVectors] = {};
  Multiply<kRows>(depth, steps, a, outer, b, slots, sum);
  Index lanes = 0;
  for (Index v = 0; v < kTileVectors; ++v) lanes += slots[v].lanes;
  if (finish.add) {
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) {
        sum[r][v] += LoadPart(c + r * ldc + slots[v].to, slots[v].lanes);
      }
    }
  } else if (finish.bias) {
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) sum[r][v] += finish.bias[r];
    }
  }
  if (finish.act != 0) {
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) sum[r][v] = Activated(finish.act, sum[r][v]);
    }
  }
  if (lanes == kTileColumns) {
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) Store(c + r * ldc + slots[v].to, sum[r][v]);
    }
    return;
  }
  HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
    HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) {
      StorePart(c + r * ldc + slots[v].to, sum[r][v], slots[v].lanes);
    }
  }
}

using StepsTileFunction = void (*)(Index, const Step*, const float*, Index, const float*, const Slot*, const Finish&,
                                   float*, Index);

template <Index kRows>
HEDGEROW_INLINE StepsTileFunction StepsTileOf(Index rows) {
  if constexpr (kRows == 1) {
    return StepsTile<1>;
  } else {
    return rows == kRows ? StepsTile<kRows> : StepsTileOf<kRows - 1>(rows);
  }
}

// The vectors of a packed panel of `columns` columns, for a c in which they follow one another too.
struct PanelSlots {
  explicit PanelSlots(Index columns) {
    for (Index v = 0; v < kTileVectors; ++v) {
      const Index lanes = Max(0, Min(kWidth, columns - v * kWidth));
      slots[v] = {v * kWidth, lanes ? v * kWidth : 0, lanes};
    }
  }
  Slot slots[kTileVectors];
};

// f(first row, rows) for strips of `rows` that differ by one row at most: a thin strip at the end would leave the
// multipliers waiting.
template <typename F>
HEDGEROW_INLINE void ForStrips(Index rows, F f) {
  const Index strips = (rows + kTileRows - 1) / kTileRows, least = rows / strips, more = rows % strips;
  for (Index i = 0, first = 0; i < strips; ++i) {
    const Index n = least + (i < more ? 1 : 0);
    f(first, n);
    first += n;
  }
}

// Both sides of tiles that share their steps, for rows and vectors that are set a block at a time. Where the ISA's tile
// wants packed operands (Isa::kPacks), this is where they are packed; elsewhere they are read where they stand.
template <typename TileIsa, bool kPacks = TileIsa::kPacks>
class Operands {
 public:
  static constexpr Index kMostRows = PTRDIFF_MAX;
  static constexpr Index kMostFloats = PTRDIFF_MAX;

  Operands(Index depth, const Step* steps, const float* a, Index outer)
      : depth_(depth), steps_(steps), a_(a), outer_(outer) {}
  // Rows [first, first + count) of a come next; at most kMostRows.
  void SetRows(Index first, Index) { first_ = first; }
  // The vectors that slots[0..n) name come next, n depth kWidth being kMostFloats at most, and up to kTileVectors - 1
  // that fill up.
  void SetVectors(const float* b, const Slot* slots, Index) {
    b_ = b;
    slots_ = slots;
  }
  // The tile at row m of those rows and vector v of those vectors.
  HEDGEROW_INLINE void Tile(Index m, Index rows, Index v, const Finish& finish, float* c, Index ldc) const {
    StepsTileOf<kTileRows>(rows)(depth_, steps_, a_ + (first_ + m) * outer_, outer_, b_, slots_ + v, finish, c, ldc);
  }

 private:
  Index depth_;
  const Step* steps_;
  const float* a_;
  Index outer_, first_ = 0;
  const float* b_ = nullptr;
  const Slot* slots_ = nullptr;
};

// c's tile from a tile's sums, kTileColumns of them for each row.
inline void FinishTile(Index rows, const float* sums, const Slot* slots, const Finish& finish, float* c, Index ldc) {
  for (Index r = 0; r < rows; ++r) {
    for (Index v = 0; v < kTileVectors; ++v) {
      if (slots[v].lanes == 0) continue;
      float* out = c + r * ldc + slots[v].to;
      const V before = finish.add ? LoadPart(out, slots[v].lanes) : Splat(finish.bias ? finish.bias[r] : 0.f);
      StorePart(out, Activated(finish.act, before + Load(sums + r * kTileColumns + v * kWidth)), slots[v].lanes);
    }
  }
}

template <typename TileIsa>
class Operands<TileIsa, true> {
 public:
  static constexpr Index kMostRows = 32;
  static constexpr Index kMostFloats = 6 * 1024;

  Operands(Index depth, const Step* steps, const float* a, Index outer)
      : depth_(depth), steps_(steps), a_(a), outer_(outer) {}
  void SetRows(Index first, Index count) {
    Index strip = 0;
    ForStrips(count, [&](Index m, Index rows) {
      strips_[strip] = m;
      float* to = rows_ + strip++ * kTileRows * depth_;
      const float* from = a_ + (first + m) * outer_;
      for (Index k = 0; k < depth_; ++k, to += kTileRows) {
        const float* at = from + steps_[k].a;
        for (Index r = 0; r < kTileRows; ++r) to[r] = r < rows ? at[r * outer_] : 0.f;
      }
    });
  }
  void SetVectors(const float* b, const Slot* slots, Index n) {
    slots_ = slots;
    float* to = vectors_;
    for (Index v = 0; v < n; v += kTileVectors) {
      for (Index k = 0; k < depth_; ++k, to += kTileColumns) {
        for (Index i = 0; i < kTileVectors; ++i) Store(to + i * kWidth, Load(b + slots[v + i].from + steps_[k].b));
      }
    }
  }
  void Tile(Index m, Index rows, Index v, const Finish& finish, float* c, Index ldc) const {
    alignas(64) float sums[kTileRows * kTileColumns];
    Index strip = 0;
    while (strips_[strip] != m) ++strip;
    TileIsa::PackedTile(depth_, rows_ + strip * kTileRows * depth_, vectors_ + v * kWidth * depth_, sums);
    FinishTile(rows, sums, slots_ + v, finish, c, ldc);
  }

 private:
  Index depth_;
  const Step* steps_;
  const float* a_;
  Index outer_;
  const Slot* slots_ = nullptr;
  Index strips_[kMostRows / kTileRows + 1];
  alignas(64) float rows_[(kMostRows / kTileRows + 1) * kTileRows * kDepth];
  alignas(64) float vectors_[kMostFloats + kTileVectors * kWidth * kDepth];
};

using TileOperands = Operands<Isa>;

// f(first row, rows) for blocks of rows that operands can hold.
template <typename F>
HEDGEROW_INLINE void ForRowBlocks(Index rows, F f) {
  for (Index first = 0; first < rows; first += Min(rows - first, TileOperands::kMostRows)) {
    f(first, Min(rows - first, TileOperands::kMostRows));
  }
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_TILE_H_
